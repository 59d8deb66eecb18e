"""The one exception for what a user can mend."""

from cxrjax.core.text import shown


class UserError(Exception):
  """A mistake in a config, a file or the machine: one line that names it and the way out.

  `cxrjax.main` prints it as `error: ...` and exits with status 2, without a traceback. Names of
  files in it are shown by `cxrjax.core.text.shown`.
  """

  def __str__(self) -> str:
    return shown(super().__str__())
