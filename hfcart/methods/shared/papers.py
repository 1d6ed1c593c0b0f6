"""BibTeX of papers that several methods cite."""

CHOI = """@article{choi2024revisiting,
  title   = {Revisiting Weight Averaging for Model Merging},
  author  = {Choi, Jiho and Kim, Donggyun and Lee, Chanhyuk and Hong, Seunghoon},
  journal = {arXiv preprint arXiv:2412.12153},
  year    = {2024}
}"""
WORTSMAN = """@inproceedings{wortsman2022model,
  title     = {Model soups: averaging weights of multiple fine-tuned models improves accuracy
               without increasing inference time},
  author    = {Wortsman, Mitchell and Ilharco, Gabriel and Gadre, Samir Ya and Roelofs, Rebecca and others},
  booktitle = {International Conference on Machine Learning},
  year      = {2022}
}"""
MARCZAK = """@inproceedings{marczak2025no,
  title     = {No Task Left Behind: Isotropic Model Merging with Common and Task-Specific Subspaces},
  author    = {Marczak, Daniel and Magistri, Simone and Cygert, Sebastian and Twardowski, Bart{\\l}omiej and
               Bagdanov, Andrew D. and van de Weijer, Joost},
  booktitle = {International Conference on Machine Learning},
  year      = {2025}
}"""
YANG = """@inproceedings{yang2024adamerging,
  title     = {AdaMerging: Adaptive Model Merging for Multi-Task Learning},
  author    = {Yang, Enneng and Wang, Zhenyi and Shen, Li and Liu, Shiwei and Guo, Guibing and Wang, Xingwei and
               Tao, Dacheng},
  booktitle = {International Conference on Learning Representations},
  year      = {2024}
}"""
LEE = """@inproceedings{lee2026adarank,
  title     = {AdaRank: Adaptive Rank Pruning for Enhanced Model Merging},
  author    = {Lee, Chanhyuk and Choi, Jiho and Lee, Chanryeol and Kim, Donggyun and Hong, Seunghoon},
  booktitle = {International Conference on Learning Representations},
  year      = {2026}
}"""
LINES = """@inproceedings{wang2025lines,
  title     = {LiNeS: Post-training Layer Scaling Prevents Forgetting and Enhances Model Merging},
  author    = {Wang, Ke and Dimitriadis, Nikolaos and Favero, Alessandro and Ortiz-Jimenez, Guillermo and
               Fleuret, Fran{\\c{c}}ois and Frossard, Pascal},
  booktitle = {International Conference on Learning Representations},
  year      = {2025}
}"""
SVC = """@inproceedings{li2026shared,
  title     = {When Shared Knowledge Hurts: Spectral Over-Accumulation in Model Merging},
  author    = {Li, Yayuan and Peng, Ze and Zhang, Jian and Guo, Jintao and Duan, Yue and Shi, Yinghuan},
  booktitle = {International Conference on Machine Learning},
  year      = {2026}
}"""
