"""Whatever stands where a file is expected: one line that names it, at once, and nothing is read without end."""

import os
import socket
from pathlib import Path

import pytest

from adadfq_lab.errors import UserError, printable
from adadfq_lab.machine.files import load_tensors
from adadfq_lab.machine.locks import held
from adadfq_lab.machine.reading import check_regular, read_bytes, read_json
from adadfq_lab.runs.config import read_config
from adadfq_lab.studies.tables import read_rows

READERS = [read_bytes, read_json, check_regular, load_tensors, read_config, read_rows]


@pytest.fixture(params=["folder", "fifo", "device", "socket", "loop", "long", "null"])
def odd(request, tmp_path):
    """Something that is not a file, and what is said about it."""
    path = tmp_path / "x"
    if request.param == "folder":
        path.mkdir()
    elif request.param == "fifo":
        os.mkfifo(path)
    elif request.param == "device":
        return Path("/dev/zero"), "is a device; give a file"
    elif request.param == "socket":
        server = socket.socket(socket.AF_UNIX)
        here = os.getcwd()
        os.chdir(tmp_path)  # the name of a socket has 107 characters at most
        server.bind("x")
        os.chdir(here)
        server.close()
    elif request.param == "loop":
        path.symlink_to(path)
        return path, "Too many levels of symbolic links"
    elif request.param == "long":
        return tmp_path / ("n" * 300), "File name too long"
    else:
        return tmp_path / "a\0b", "null character"
    return path, {"fifo": "is a FIFO", "folder": "is a folder", "socket": "is a socket"}[request.param]


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
def test_what_is_no_file_is_one_line(read, odd):
    """A folder, a FIFO nobody writes to, a device without end, a socket, a circle of links, names no file can have."""
    path, what = odd
    if read is read_rows and not os.path.exists(str(path).replace("\0", "")):
        pytest.skip("a results file may be missing")
    with pytest.raises(UserError, match=what) as caught:
        read(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_file_is_read_whole_up_to_its_limit(tmp_path):
    """One byte more than the limit is refused; the message says both sizes. What is not JSON is damaged."""
    path = tmp_path / "f"
    path.write_bytes(b"[1, 2]")
    assert (read_bytes(path, limit=6), read_json(path)) == (b"[1, 2]", [1, 2])
    with pytest.raises(UserError, match="has 6 bytes, more than the 5"):
        read_bytes(path, limit=5)
    for content in (b"", b"{", b"\xff\xfe", b"[" * 100_000):
        path.write_bytes(content)
        with pytest.raises(UserError, match="is damaged: it is not JSON"):
            read_json(path)
    with pytest.raises(UserError, match="there is no file"):
        read_json(tmp_path / "nowhere")


def test_a_file_of_the_system_that_claims_no_size_is_read_up_to_the_limit():
    """/proc says 0 bytes and gives more."""
    assert len(read_bytes(Path("/proc/self/status"), limit=100)) == 100


def test_printable_text_holds_nothing_that_a_terminal_acts_on():
    """Every control character, C0 and C1, direction marks, lone surrogates; letters, λ and ▁ stay; lines may."""
    for code in [*range(32), *range(127, 160), 0x202E, 0x2066, 0x2028, 0xFEFF, 0xD800]:
        assert printable(f"a{chr(code)}b").isprintable()
    assert printable("\x1b[31mλ ▁é\n") == "\\x1b[31mλ ▁é\\n"
    assert printable("a\nb\r", lines=True) == "a\nb\\r"


def test_asking_for_a_lock_does_not_wait_for_a_fifo(tmp_path):
    os.mkfifo(tmp_path / ".worker")
    assert not held(tmp_path / ".worker")
