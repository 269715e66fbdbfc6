"""The bounds explorer, a recorded run and the images of G as a web page: `python -m adadfq_lab.course.dashboard`.

Voila serves the notebook `dashboard.ipynb` on this machine only, to whoever has the token in the address that is printed. Each
visit starts a kernel. A kernel without a page is ended after ten minutes, or earlier if its place is needed; when all places
are taken by open pages, a further visitor is asked to come back later.
"""

import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from adadfq_lab.data.locations import notebooks_folder
from adadfq_lab.errors import UserError
from adadfq_lab.machine.environment import import_extra

IDLE_SECONDS = 600
"""After how long without a page a kernel is ended."""
MOST = 4
"""How many kernels there are at most; each takes about 600 MB. Another number: --LimitedKernels.most=8."""
_OPENING = timedelta(seconds=30)
"""How long a page may take to connect to its kernel."""
INSTALL = 'pip install ".[notebooks,dashboard]"'


def limited_kernels() -> type[Any]:
    """A kernel manager of Jupyter's with at most `MOST` kernels, of which those without a page are ended."""
    base = import_extra("jupyter_server.services.kernels.kernelmanager", INSTALL).AsyncMappingKernelManager
    traitlets = import_extra("traitlets", INSTALL)
    refusal = import_extra("tornado.web", INSTALL).HTTPError

    class LimitedKernels(base):  # type: ignore[misc, valid-type]
        cull_idle_timeout = traitlets.Integer(IDLE_SECONDS, config=True)
        cull_interval = traitlets.Integer(60, config=True)
        most = traitlets.Integer(MOST, config=True)
        starting = 0

        async def start_kernel(self, **options: Any) -> str:
            """Starts a kernel; if there are `most` already, ends the one that has been without a page for longest."""
            while len(self.list_kernel_ids()) + self.starting >= self.most:
                if (idle := self._longest_idle()) is None:
                    raise refusal(503, reason="All places are taken; come back in a few minutes")
                await self.shutdown_kernel(idle)
            self.starting += 1
            try:
                return str(await super().start_kernel(**options))
            finally:
                self.starting -= 1

        def _longest_idle(self) -> str | None:
            kernels = {name: self.get_kernel(name) for name in self.list_kernel_ids()}
            since = datetime.now(UTC) - _OPENING
            idle = {
                name: kernel.last_activity
                for name, kernel in kernels.items()
                if not self._kernel_connections.get(name, 0) and kernel.last_activity < since
            }
            return min(idle, key=lambda name: idle[name], default=None)

    return LimitedKernels


def main(arguments: Sequence[str]) -> None:
    """Serves the dashboard until Ctrl-C; `arguments` are Voila's, such as --port=9000 or --no-browser."""
    voila = import_extra("voila.app", INSTALL).Voila
    token = {} if any("token" in argument for argument in arguments) else {"auto_token": True}
    app = voila.instance(ip="127.0.0.1", **token)
    app.initialize([str(notebooks_folder() / "dashboard.ipynb"), *arguments])
    app.voila_configuration.multi_kernel_manager_class = limited_kernels()
    app.start()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"adadfq: {error}")
