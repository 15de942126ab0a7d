"""nbgrader's settings for the course."""

c = get_config()  # noqa: F821  (nbgrader provides it)

c.CourseDirectory.course_id = "vilamp"
# Seconds a cell may take; a student's endless loop then costs its points and nothing else.
c.ExecutePreprocessor.timeout = 60
c.ClearSolutions.code_stub = {"python": "raise NotImplementedError()"}
# The kernel's own warnings, not the student's: one about TCP comes with every start.
c.ExecutePreprocessor.extra_arguments = ["--IPKernelApp.log_level=40"]
