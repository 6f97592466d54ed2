"""Test the reward for programs: real programs in a real sandbox, those that try to leave it included."""

import shutil

import pytest

from rlvr_sweeps.grading import reward_pool
from rlvr_sweeps.grading.ready import code
from rlvr_sweeps.grading.reward_pool import RewardFunction, VerifierError
from rlvr_sweeps.grading.verifiers import Answered, Part, Verifier, verdicts

if shutil.which("bwrap") is not None:
    code.check_environment()

needs_bwrap = pytest.mark.skipif(
    shutil.which("bwrap") is None, reason="SKIPPED: programs were not run. As root on Debian: apt-get install bubblewrap"
)
ADD = "def add(a, b):\n    return a + b"
TESTS = ["assert add(1, 2) == 3", "assert add(-1, 1) == 0"]


def completions(*programs):
    """Return completions with a fenced program each."""
    return [[{"role": "assistant", "content": f"<think>hm</think>So:\n```python\n{program}\n```\n"}] for program in programs]


@needs_bwrap
def test_the_share_of_tests_that_pass():
    programs = (ADD, "def add(a, b):\n    return 0", "def add(a, b:", "")
    assert code.reward(completions(*programs), [TESTS] * 4) == [1.0, 0.5, 0.0, 0.0]
    stdin = '[{"input": "2 3\\n", "output": "5\\n"}, {"input": "1 1", "output": "3"}]'
    assert code.reward(completions("print(sum(map(int, input().split())))"), [stdin]) == [0.5]
    with pytest.raises(ValueError, match="no tests"):
        code.reward(completions(ADD), [[]])


ESCAPES = {
    "exit": "import os; os._exit(0)",
    "network": "import socket; socket.create_connection(('1.1.1.1', 53), 2)",
    "write": "open('/usr/x', 'w')",
    "home": "import os; assert any(os.path.exists(p) for p in ('/etc/passwd', '/home', '/var'))",
    "time": "while True: pass",
    "wait": "import time; time.sleep(100)",
    "memory": "bytearray(1 << 30)",
    "disk": "open('/tmp/x', 'wb').write(bytes(1 << 22))",
    "processes": "import os\nfor _ in range(200):\n    if os.fork() == 0:\n        import time; time.sleep(100)",
    "capabilities": "assert int(open('/proc/self/status').read().split('CapEff:')[1].split()[0], 16) != 0",
    "others": "import os; assert any(name.isdigit() and int(name) > 3 for name in os.listdir('/proc'))",
}


@needs_bwrap
@pytest.mark.parametrize("name", ESCAPES)
def test_a_program_cannot_leave_the_sandbox(name):
    """Each program would pass its test, `True`, if what it tries worked."""
    program = ESCAPES[name]
    assert code.reward(completions(program), ["assert True"], seconds=1.0, memory_mb=256) == [0.0]
    assert code.reward(completions("x = 1"), ["assert x == 1"], seconds=1.0, memory_mb=256) == [1.0]


@needs_bwrap
def test_it_runs_as_a_verifier():
    part = Part("code", RewardFunction("rlvr_sweeps.grading.ready.code:reward", timeout_s=10), arguments=(("seconds", 2.0),))
    results = verdicts(
        Verifier((part,)), [Answered(f"```\n{text}\n```", "", {"tests": TESTS}) for text in (ADD, "def add(a, b): return 0")]
    )
    reward_pool.close()
    assert [(result.reason, result.reward) for result in results] == [("correct", 1.0), ("partly correct", 0.5)]


def test_it_is_refused_without_a_sandbox(monkeypatch, tmp_path):
    part = Part("code", RewardFunction("rlvr_sweeps.grading.ready.code:reward"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(VerifierError, match="the program bwrap is not installed"):
        verdicts(Verifier((part,)), [Answered("", "", {"tests": TESTS})])
    (tmp_path / "bwrap").symlink_to(shutil.which("false", path="/bin:/usr/bin"))  # a bwrap that makes no sandbox
    with pytest.raises(VerifierError, match="bwrap cannot make a sandbox here"):
        verdicts(Verifier((part,)), [Answered("", "", {"tests": TESTS})])
