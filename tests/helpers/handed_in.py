"""Hand-ins as a class gives them, some hostile: sources for `p_ds`, each a `def`, and what marking says of it.

TRACE stands for a file that must not come to be.
"""

HOSTILE = {
    "loop": ("def p_ds(z_p, z_q):\n    while True: pass\n", "did not end within"),
    "sleep": ("import time\ndef p_ds(z_p, z_q):\n    time.sleep(1000)\n", "did not end within"),
    "loop on import": ("while True: pass\ndef p_ds(z_p, z_q): pass\n", "did not end within"),
    "memory": ("def p_ds(z_p, z_q):\n    x = [0]\n    while True: x = x + x\n", None),
    "tensor memory": ("def p_ds(z_p, z_q):\n    return torch.zeros(10**6, 10**6)\n", "memory"),
    "exit": ("import os\ndef p_ds(z_p, z_q):\n    os._exit(0)\n", "ended its process itself"),
    "exit on import": ("import os\nos._exit(0)\n", "ended its process itself"),
    "SystemExit": ("def p_ds(z_p, z_q):\n    raise SystemExit\n", "SystemExit"),
    "segfault": ("import ctypes\ndef p_ds(z_p, z_q):\n    ctypes.string_at(0)\n", "may not do this"),
    "write": ("def p_ds(z_p, z_q):\n    open('TRACE', 'w').write('x')\n", "may not write files"),
    "write low": (
        "import os\ndef p_ds(z_p, z_q):\n    os.open('TRACE', os.O_CREAT | os.O_WRONLY)\n",
        "may not write",
    ),
    "pathlib": ("from pathlib import Path\ndef p_ds(z_p, z_q):\n    Path('TRACE').touch()\n", "may not"),
    "remove": ("import os\ndef p_ds(z_p, z_q):\n    os.remove('victim')\n", "may not do this (os.remove)"),
    "rmtree": ("import shutil\ndef p_ds(z_p, z_q):\n    shutil.rmtree('TRACE')\n", "may not do this"),
    "system": ("import os\ndef p_ds(z_p, z_q):\n    os.system('touch TRACE')\n", "may not do this"),
    "program": ("import subprocess\ndef p_ds(z_p, z_q):\n    subprocess.run(['ls'])\n", "may not do this"),
    "fork bomb": ("import os\ndef p_ds(z_p, z_q):\n    while True: os.fork()\n", "may not do this"),
    "kill": ("import os, signal\ndef p_ds(z_p, z_q):\n    os.kill(os.getppid(), signal.SIGKILL)\n", "may not do this"),
    "network": ("import socket\ndef p_ds(z_p, z_q):\n    socket.create_connection(('127.0.0.1', 9))\n", "may not do this"),
    "truncates in C++": (
        "def p_ds(z_p, z_q):\n    torch._C.PyTorchFileWriter('TRACE')\n    return z_p\n",
        None,
    ),
    "writes in C++": (
        "def p_ds(z_p, z_q):\n    torch.from_file('TRACE', shared=True, size=9)\n",
        "adadfq_was_here",
    ),
    "program in C": (
        "import _posixsubprocess, os\ndef p_ds(z_p, z_q):\n    r, w = os.pipe()\n    n, f = None, -1\n"
        "    _posixsubprocess.fork_exec([b'/bin/touch', b'TRACE'], [b'/bin/touch'], True, (w,), n, n, f, f, f, "
        "f, f, f, r, w, False, False, 0, n, n, n, f, n, True)\n    import time\n    time.sleep(0.5)\n    return z_p\n",
        None,
    ),
    "prints": ("def p_ds(z_p, z_q):\n    print('x' * 10**7)\n    return torch.softmax(z_p - z_q, -1)\n", ""),
    "prints for ever": ("def p_ds(z_p, z_q):\n    while True: print('x' * 10**6)\n", "did not end within"),
    "huge answer": ("def p_ds(z_p, z_q):\n    return torch.zeros(3000, 3000)\n", "9,000,000 numbers"),
    "recursion": ("def p_ds(z_p, z_q):\n    return p_ds(z_p, z_q)\n", "RecursionError"),
    "fooled comparison": (
        "def p_ds(z_p, z_q):\n    torch.allclose = lambda *a, **k: True\n    torch.equal = torch.allclose\n    return z_p\n",
        "differ",
    ),
    "fooled judge": (
        "import adadfq_lab.course.grading as g\ng.judge = g.examine = lambda *a: g.Verdict('p_ds', True, 'ha')\n"
        "def p_ds(z_p, z_q):\n    return z_p\n",
        "differ",
    ),
    "equal to all": (
        "class Same:\n    def __eq__(self, other): return True\n    __hash__ = None\ndef p_ds(z_p, z_q):\n    return Same()\n",
        "expected a tensor",
    ),
    "huge number": ("def p_ds(z_p, z_q):\n    return 10**5000\n", "expected a tensor"),
    "no such name": ("def p_ds(z_p, z_q):\n    return soft(z_p - z_q)\n", "NameError"),
    "no Python": ("def p_ds(z_p, z_q)\n    return 1\n", "SyntaxError"),
    "another name": ("def pds(z_p, z_q):\n    return torch.softmax(z_p - z_q, -1)\n", "defines no function p_ds"),
    "thread": (
        "import threading\ndef p_ds(z_p, z_q):\n    threading.Thread(target=lambda: [None for _ in iter(int, 1)]).start()\n"
        "    return torch.softmax(z_p - z_q, -1)\n",
        None,
    ),
    "forged reply": (
        "import os\ndef p_ds(z_p, z_q):\n    for fd in range(3, 64):\n        try: os.write(fd, b'[]' + bytes([10]))\n"
        "        except OSError: pass\n    return torch.softmax(z_p - z_q, -1)\n",
        None,
    ),
}
"""name: (source, what is said; "" for a pass, None for either)."""

RIGHT = "def p_ds(z_p, z_q):\n    return torch.softmax(z_p - z_q, dim=-1)\n"
