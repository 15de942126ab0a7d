"""What notebooks and their re-runs need."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "metrics": ["record", "recorded"],
        "reproduce": [
            "NOTEBOOKS",
            "Parameter",
            "RESULT",
            "Run",
            "TIME_LIMIT",
            "all_notebooks",
            "check_parameters",
            "find_notebook",
            "parameters_of",
            "parse_parameters",
            "run_notebook",
            "run_notebooks",
        ],
        "sweep": ["Sweep", "SweepResult", "load_sweep", "run_sweep"],
        "widgets": ["setup", "show_widget"],
    },
)
