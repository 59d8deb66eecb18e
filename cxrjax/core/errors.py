"""The one exception for what a user can mend."""


class UserError(Exception):
  """A mistake in a config, a file or the machine: one line that names it and the way out.

  `cxrjax.main` prints it as `error: ...` and exits with status 2, without a traceback.
  """
