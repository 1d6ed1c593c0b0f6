"""Registry lines of the methods that look at each matrix as one: at its spectrum, or its row space."""

from __future__ import annotations

from hfcart.methods._contract import Method, Parameter

SCALE_HELP = "λ (α in some papers), the factor before the sum of task vectors."
_MEAN = "the base plus α times the mean task vector"

_GARGIULO = """@inproceedings{gargiulo2025task,
  title     = {Task Singular Vectors: Reducing Task Interference in Model Merging},
  author    = {Gargiulo, Antonio Andrea and Crisostomi, Donato and Bucarelli, Maria Sofia and Scardapane, Simone and
               Silvestri, Fabrizio and Rodol{\\`a}, Emanuele},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2025}
}"""
_MARCZAK = """@inproceedings{marczak2025no,
  title     = {No Task Left Behind: Isotropic Model Merging with Common and Task-Specific Subspaces},
  author    = {Marczak, Daniel and Magistri, Simone and Cygert, Sebastian and Twardowski, Bart{\\l}omiej and
               Bagdanov, Andrew D. and van de Weijer, Joost},
  booktitle = {International Conference on Machine Learning},
  year      = {2025}
}"""
_CHENG = """@inproceedings{cheng2025whoever,
  title     = {Whoever Started the Interference Should End It: Guiding Data-Free Model Merging via Task Vectors},
  author    = {Cheng, Runxi and Xiong, Feng and Wei, Yongxian and Zhu, Wanyun and Yuan, Chun},
  booktitle = {International Conference on Machine Learning},
  year      = {2025}
}"""

SPECTRAL = (
    Method(
        name="tsv_m",
        title="TSV-Merge (Task Singular Vectors)",
        summary="Give every task 1/T of the singular directions, and make them orthogonal to each other.",
        matrices="the base plus α times the towers' leading singular triplets, min(m, n)/T of each, after both sides' "
        "singular vectors are made orthogonal across towers",
        others=_MEAN,
        formula=r"\theta_m = \theta_0 + \alpha\, \hat U\, \mathrm{diag}(S_1, \dots, S_T)\, \hat V^\top,"
        r" \qquad \hat U = \mathrm{polar}([U_1 \cdots U_T]),\ \hat V = \mathrm{polar}([V_1 \cdots V_T])",
        matrix_rule="tsv_m:tsv_m",
        other_rule="mean_task_vector:mean_task_vector",
        parameters=(Parameter("scale", 1.0, SCALE_HELP),),
        needs_base=True,
        arxiv="2412.00081",
        citation=_GARGIULO,
        task_vectors=True,
        decomposes=True,
        any_matrix=True,
        copies=16,
        note="Its authors' code takes the position embedding for a matrix as well: --matrices all-2d.",
    ),
    Method(
        name="iso_c",
        title="Iso-C (isotropic merging in the common subspace)",
        summary="The sum of the task vectors with all its singular values made equal.",
        matrices="the base plus α times the sum of the task vectors with every singular value replaced by their mean "
        "(directions the sum does not have stay out)",
        others=_MEAN,
        formula=r"\theta_m = \theta_0 + \alpha\, \bar\sigma\, U V^\top,"
        r" \qquad \sum_{t=1}^{T} (\theta_t - \theta_0) = U\, \mathrm{diag}(\sigma)\, V^\top",
        matrix_rule="iso_c:iso_c",
        other_rule="mean_task_vector:mean_task_vector",
        parameters=(Parameter("scale", 1.3, SCALE_HELP),),
        needs_base=True,
        arxiv="2502.04959",
        citation=_MARCZAK,
        task_vectors=True,
        decomposes=True,
        any_matrix=True,
        copies=16,
        note="The paper's α for 8, 14, 20 tasks: ViT-B/32 1.3, 1.0, 0.9; ViT-L/14 1.5, 1.3, 1.0. With the Hub's "
        "ViT-B/32 towers 1.5 is used. Every 2-D tensor is a matrix to its code: --matrices all-2d.",
    ),
    Method(
        name="iso_cts",
        title="Iso-CTS (isotropic merging in common and task-specific subspaces)",
        summary="Iso-C with the weakest common directions given to what is each task's own.",
        matrices="the base plus α times the common directions of the summed task vectors and each tower's own beside "
        "them, made orthogonal, every singular value replaced by the mean",
        others=_MEAN,
        formula=r"\theta_m = \theta_0 + \alpha\, \bar\sigma\, \hat U \hat V^\top,"
        r" \qquad \hat U = \mathrm{polar}([U_1 \cdots U_T\; U_c]),\ \hat V = \mathrm{polar}([V_1 \cdots V_T\; V_c])",
        matrix_rule="iso_cts:iso_cts",
        other_rule="mean_task_vector:mean_task_vector",
        parameters=(
            Parameter("scale", 1.5, SCALE_HELP),
            Parameter(
                "common",
                0.8,
                "Share of the singular directions that the common space gets, in (0, 1]; the towers share the rest.",
                above=0.0,
                most=1.0,
            ),
        ),
        needs_base=True,
        arxiv="2502.04959",
        citation=_MARCZAK,
        task_vectors=True,
        decomposes=True,
        any_matrix=True,
        copies=16,
        note="The paper's α for 8, 14, 20 tasks: ViT-B/32 1.5, 1.2, 1.1; ViT-L/14 1.9, 1.5, 1.2. Every 2-D tensor "
        "is a matrix to its code: --matrices all-2d.",
    ),
    Method(
        name="wudi",
        title="WUDI-Merging",
        summary="Without data, find the task vector whose difference from each tower's lies outside its row space.",
        matrices="the base plus the task vector that interferes least with each tower's own, found by Adam from "
        "their sum",
        others="the base",
        formula=r"\theta_m = \theta_0 + \arg\min_{\tau} \sum_{t=1}^{T}"
        r" \frac{\lVert (\tau - \tau_t)\, \tau_t^\top \rVert_F^2}{\lVert \tau_t \rVert_F^2},"
        r" \qquad \tau_t = \theta_t - \theta_0",
        matrix_rule="wudi:wudi",
        other_rule="base:base",
        parameters=(
            Parameter("steps", 300, "Steps of Adam.", kind="whole", least=0.0, most=100_000.0),
            Parameter("lr", 1e-5, "Learning rate of Adam.", above=0.0, most=1.0),
        ),
        needs_base=True,
        arxiv="2503.08099",
        citation=_CHENG,
        task_vectors=True,
        copies=16,
        published=(85.2, 92.6),
        note="Published for OpenCLIP's towers; 84.5 was reached with the Hub's ViT-B/32.",
    ),
)
