"""Examinations: needles in haystacks, the paper's studies, your own footage."""

import lazy_loader

_NAMES = {
    "attention": "CURVE answer_attention attention_study merged_patches share_needed",
    "footage": "Case Splice evaluate_cases load_cases",
    "niah": "Cell CellResult Evaluation Examiner POOL SceneFeatures cell_haystacks cell_questions grid load_qformer",
    "report": "beside_claim beside_figure difference_text find grid_of matching mean_text not_best pooled "
    "results_table share_text source_text spread_text told_apart variant_name verdict",
    "results": "ALL EVALUATED Prediction RESULTS kept_result load_result needle_keyframes own_folder result_of",
    "runs": "evaluate_cells",
    "scenes": "PhotoScene coverage hit_at load_scenes queries_of rank_of_photo scene_of_frames",
    "scoring": "answers_match option_matches paired_difference_interval paired_sign_test score wilson_interval",
    "studies": "BASELINE Exam FULL ablation_study comparison_study keyframes_study niah_study peers_study "
    "redundancy_study seeds_study sensitivity_study",
}

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={module: names.split() for module, names in _NAMES.items()}
)
