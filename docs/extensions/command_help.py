"""The directive ``command-help``: what a command line with ``--help`` prints."""

import io
import os
import shlex
from contextlib import redirect_stdout, suppress
from unittest import mock

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from mlx_recurrent.command import cli


class CommandHelp(SphinxDirective):
    """A literal block with the help of ``mlx-recurrent`` and these arguments."""

    optional_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Return the block."""
        arguments = shlex.split(self.arguments[0]) if self.arguments else []
        printed = io.StringIO()
        with (
            mock.patch.dict(os.environ, COLUMNS="80", NO_COLOR="1"),
            redirect_stdout(printed),
            suppress(SystemExit),
        ):
            cli.main([*arguments, "--help"])
        text = printed.getvalue()
        return [nodes.literal_block(text, text, language="none")]


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directive."""
    app.add_directive("command-help", CommandHelp)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
