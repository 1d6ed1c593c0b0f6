"""Registry lines of the methods that keep some entries of the task vectors and drop the rest."""

from __future__ import annotations

from hfcart.methods._adaptive import ADAMERGING_PP
from hfcart.methods._contract import Chosen, Method, Parameter
from hfcart.methods._spectral import SCALE_HELP

_SAME = "the same as the matrices"
_SEED = Parameter("seed", 0, "Of what is drawn at random.", kind="whole", least=0.0, most=2.0**53)
_DENSITY = "Share of each task vector's entries that stays, in (0, 1]."

_YADAV = """@inproceedings{yadav2023ties,
  title     = {TIES-Merging: Resolving Interference When Merging Models},
  author    = {Yadav, Prateek and Tam, Derek and Choshen, Leshem and Raffel, Colin and Bansal, Mohit},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2023}
}"""
_WANG = """@inproceedings{wang2024localizing,
  title     = {Localizing Task Information for Improved Model Merging and Compression},
  author    = {Wang, Ke and Dimitriadis, Nikolaos and Ortiz-Jimenez, Guillermo and Fleuret, Fran{\\c{c}}ois and
               Frossard, Pascal},
  booktitle = {International Conference on Machine Learning},
  year      = {2024}
}"""
_DAVARI = """@inproceedings{davari2024model,
  title     = {Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse Masks},
  author    = {Davari, MohammadReza and Belilovsky, Eugene},
  booktitle = {European Conference on Computer Vision},
  year      = {2024}
}"""
_YU = """@inproceedings{yu2024language,
  title     = {Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free Lunch},
  author    = {Yu, Le and Yu, Bowen and Yu, Haiyang and Huang, Fei and Li, Yongbin},
  booktitle = {International Conference on Machine Learning},
  year      = {2024}
}"""
_DEEP = """@article{deep2024della,
  title   = {DELLA-Merging: Reducing Interference in Model Merging through Magnitude-Based Sampling},
  author  = {Deep, Pala Tej and Bhardwaj, Rishabh and Poria, Soujanya},
  journal = {arXiv preprint arXiv:2406.11617},
  year    = {2024}
}"""

SPARSE = (
    Method(
        name="ties",
        title="TIES-Merging (Trim, Elect Sign and Merge)",
        summary="Keep each task vector's largest entries, elect a sign for each, merge the entries that have it.",
        matrices="the base plus λ times the mean (or sum) over the towers of the largest entries of their task "
        "vectors, as far as they have the sign elected for their place",
        others=_SAME,
        formula=r"\theta_m = \theta_0 + \lambda\, \tau, \qquad \tau^p = \frac{1}{|A^p|} \sum_{t \in A^p} \hat\tau_t^p,"
        r" \qquad A^p = \{t : \mathrm{sgn}(\hat\tau_t^p) = \mathrm{sgn}(\textstyle\sum_s \hat\tau_s^p)\}",
        matrix_rule="ties:ties",
        other_rule="ties:ties",
        parameters=(
            Parameter("scale", 1.0, SCALE_HELP),
            Parameter("density", 0.2, _DENSITY, above=0.0, most=1.0),
            Parameter(
                "trim",
                "global",
                "Rank entries over the whole tower, as the paper does, or tensor by tensor.",
                kind="choice",
                choices=("global", "tensor"),
            ),
            Parameter(
                "combine",
                "mean",
                "What becomes of the entries that agree: their mean, or their sum (then with a smaller scale).",
                kind="choice",
                choices=("mean", "sum"),
            ),
        ),
        needs_base=True,
        arxiv="2306.01708",
        citation=_YADAV,
        fit="ties:gather",
        task_vectors=True,
        published=(72.4, 86.0),
        note="The authors search the scale over 0.8 to 1.8 with the mean; others take the sum and 0.3. Their 20 % "
        "counts text weights too that their image encoder holds but does not use, none of which changed: of the tower "
        "alone it is a density of 0.259 for ViT-B/32 and 0.226 for ViT-L/14.",
        adaptive=ADAMERGING_PP,
    ),
    Method(
        name="consensus",
        title="Consensus task arithmetic (TALL masks)",
        summary="Task arithmetic on the entries that matter to at least two tasks, the base elsewhere.",
        matrices="the base plus α times the sum of the task vectors, in the places that at least `agree` towers' "
        "TALL masks keep (the paper chooses λ and α on validation images; hfcart's defaults, 0.4 and 0.3, are its own)",
        others=_SAME,
        formula=r"\theta_m = \theta_0 + \alpha \sum_{t=1}^{T} \tau_t \odot \mathbb{1}\Big[\sum_s m_s \ge k\Big],"
        r" \qquad m_t = \mathbb{1}\big[\,|\tau_t| > \lambda_t\, |\textstyle\sum_s \tau_s - \tau_t|\,\big]",
        matrix_rule="consensus:consensus",
        other_rule="consensus:consensus",
        parameters=(
            Parameter("scale", 0.3, SCALE_HELP),
            Parameter(
                "threshold",
                0.4,
                "λ of the TALL masks: one for all sources, or one for each in the order given, with commas; 0.2 to "
                "0.6 are usual.",
                kind="each",
                least=0.0,
            ),
            Parameter("agree", 2, "How many towers' masks must keep an entry.", kind="whole", least=1.0),
        ),
        needs_base=True,
        arxiv="2405.07813",
        citation=_WANG,
        updates="consensus:updates",
        task_vectors=True,
        note="Its paper has 75.2 for ViT-B/32 and these tasks, λ and α by validation, with towers of its own: not to "
        "be held against the others' figures. The defaults here are nobody's optimum: --tasks chooses each λ, and "
        "`hfcart sweep` then α, on validation images with their labels, as the paper does.",
        chosen=Chosen(
            parameter="threshold",
            candidates=(0.4, 0.3, 0.5, 0.2, 0.6),  # of equally good ones the nearest to the default, then the smaller
            candidate="consensus:masked",
            formula=r"\theta_0 + m_t \odot \textstyle\sum_s \tau_s",
        ),
    ),
    Method(
        name="breadcrumbs",
        title="Model Breadcrumbs",
        summary="Task arithmetic without each task vector's outliers and its smallest entries.",
        matrices="the base plus α times the sum of the task vectors, each without its largest and smallest entries "
        "in every tensor",
        others=_SAME,
        formula=r"\theta_m = \theta_0 + \alpha \sum_{t=1}^{T} m_t \odot (\theta_t - \theta_0),"
        r" \qquad m_t = \mathbb{1}\big[Q_\beta(|\tau_t|) \le |\tau_t| \le Q_\gamma(|\tau_t|)\big]",
        matrix_rule="breadcrumbs:breadcrumbs",
        other_rule="breadcrumbs:breadcrumbs",
        parameters=(
            Parameter("scale", 0.3, SCALE_HELP),
            Parameter("beta", 0.85, "Share of the smallest entries to drop, in [0, 1).", least=0.0, most=0.999999),
            Parameter("gamma", 0.993, "Quantile above which entries are outliers, in (0, 1].", above=0.0, most=1.0),
        ),
        needs_base=True,
        arxiv="2312.06795",
        citation=_DAVARI,
        task_vectors=True,
        note="Entries are ranked over each tensor; the authors' code ranks within each row of it.",
    ),
    Method(
        name="dare",
        title="DARE (Drop And REscale)",
        summary="Task arithmetic on task vectors of which a random share is dropped and the rest scaled up.",
        matrices="the base plus λ times the sum of the task vectors, of each of which a random share of the entries "
        "is kept and divided by that share",
        others=_SAME,
        formula=r"\theta_m = \theta_0 + \lambda \sum_{t=1}^{T} \frac{m_t \odot (\theta_t - \theta_0)}{1 - p},"
        r" \qquad m_t \sim \mathrm{Bernoulli}(1 - p)",
        matrix_rule="dare:dare",
        other_rule="dare:dare",
        parameters=(
            Parameter("scale", 0.3, SCALE_HELP),
            Parameter("density", 0.1, _DENSITY, above=0.0, most=1.0),
            _SEED,
        ),
        needs_base=True,
        arxiv="2311.03099",
        citation=_YU,
        task_vectors=True,
    ),
    Method(
        name="della",
        title="DELLA-Merging (MagPrune)",
        summary="Drop small entries more often than large ones, rescale, elect signs, take the mean of what agrees.",
        matrices="the base plus λ times the mean of the randomly pruned task vectors' entries that have the sign of "
        "their sum; in each row the smaller entries are dropped more often",
        others=_SAME,
        formula=r"\theta_m = \theta_0 + \lambda\, \mathrm{mean}\{\hat\tau_t : \mathrm{sgn}(\hat\tau_t) ="
        r" \mathrm{sgn}(\textstyle\sum_s \hat\tau_s)\}, \qquad \hat\tau_t = \frac{m_t \odot \tau_t}{1 - p_r},"
        r"\ p_r = p - \frac{\epsilon}{2} + \frac{\epsilon\, r}{n}",
        matrix_rule="della:della",
        other_rule="della:della",
        parameters=(
            Parameter("scale", 1.0, SCALE_HELP),
            Parameter("density", 0.3, _DENSITY, above=0.0, most=1.0),
            Parameter(
                "epsilon", 0.1, "How much oftener a row's smallest entry drops than its largest.", least=0.0, most=1.0
            ),
            _SEED,
        ),
        needs_base=True,
        arxiv="2406.11617",
        citation=_DEEP,
        task_vectors=True,
        note="The probabilities spread over ε, as in the paper; the authors' code, and mergekit, spread them over 2 ε.",
    ),
)
