"""What notebooks and their re-runs need."""

import lazy_loader

_NAMES = {
    "widgets": "setup show_widget",
    "metrics": "record recorded",
    "reproduce": "NOTEBOOKS RESULT TIME_LIMIT Parameter Run all_notebooks check_parameters find_notebook parameters_of "
    "parse_parameters run_notebook run_notebooks",
    "sweep": "Sweep SweepResult load_sweep run_sweep",
}
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={module: names.split() for module, names in _NAMES.items()}
)
