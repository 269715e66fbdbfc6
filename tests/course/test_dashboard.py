"""The dashboard's kernels: never more than their number, and one without a page gives up its place."""

import asyncio
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from adadfq_lab.course.dashboard import limited_kernels

pytest.importorskip("jupyter_server", reason="needs the extra `notebooks`")


def test_kernels_without_a_page_make_place(monkeypatch):
    """With two places: the third visit ends the kernel that has been without a page for longest; open pages are kept."""
    from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager as Base
    from tornado.web import HTTPError

    manager, kernels = limited_kernels()(most=2), {}

    async def start(self, name):
        kernels[name] = SimpleNamespace(last_activity=datetime.now(UTC) - timedelta(minutes=5 - len(kernels)))
        return name

    async def shutdown(self, name):
        del kernels[name]

    monkeypatch.setattr(Base, "start_kernel", start)
    monkeypatch.setattr(Base, "shutdown_kernel", shutdown)
    monkeypatch.setattr(Base, "list_kernel_ids", lambda self: list(kernels))
    monkeypatch.setattr(Base, "get_kernel", lambda self, name: kernels[name])

    async def visits():
        for name in ("first", "second", "third"):
            await manager.start_kernel(name=name)
        assert set(kernels) == {"second", "third"}
        manager._kernel_connections |= {"second": 1, "third": 1}
        with pytest.raises(HTTPError, match="503"):
            await manager.start_kernel(name="fourth")

    asyncio.run(visits())
    assert manager.cull_idle_timeout == 600
