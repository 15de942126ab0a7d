"""Every figure, one function each."""

import lazy_loader

_NAMES = {
    "costs": "flops_by_frames full_size_memory_figure growth_by_frames measured_on_gpu memory_by_frames memory_trace "
    "stage_budget stage_memory",
    "selection": "contact_sheet film_strip frame_similarity keyframe_sweep refused_twins relevance_curve score_bars "
    "similarity_histogram walk_on_circle",
    "sequences": "architecture context_use mixed_precision patch_maps reference_timeline sharpness token_budget",
    "studies": "CHANCE ablation_figure attention_figure chance_of differences_figure niah_figure peers_figure "
    "sensitivity_figure setting_figure shown_name training_curves training_figure",
    "style": "set_style",
    "sweeps": "sweep_curves sweep_heat_map",
}

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={module: names.split() for module, names in _NAMES.items()}
)
