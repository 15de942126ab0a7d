"""ViLaMP in notebooks."""
