"""The one Python environment of tests and benchmarks: what requirements.txt names, below target/python. Standard library only.

environment.py check      exits with 0 if the environment is complete, and changes nothing
environment.py python     makes it complete if it is not, and prints the path of its interpreter
environment.py envoy      the same, and prints the path of the Envoy binary
"""

import fcntl
import glob
import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
PLACE = os.path.normpath(os.path.join(HERE, "../../../target/python"))
REQUIREMENTS = os.path.join(HERE, "requirements.txt")
VENV = os.path.join(PLACE, "venv")
# Written last: what was interrupted, or made by another Python or from another list, is made anew.
STAMP = os.path.join(VENV, "complete")


def wanted():
    with open(REQUIREMENTS) as file:
        return f"{sys.version}\n{file.read()}"


def is_complete():
    try:
        with open(STAMP) as file:
            return file.read() == wanted()
    except FileNotFoundError:
        return False


def make():
    import venv

    venv.create(VENV, clear=True, with_pip=True)
    pip = [os.path.join(VENV, "bin/python"), "-m", "pip", "--disable-pip-version-check", "--no-input"]
    # Ready-made packages only: a compiler run in the middle of a test would be taken for a hang.
    run(pip + ["install", "--quiet", "--no-deps", "--only-binary", ":all:", "-r", REQUIREMENTS])
    # The list is complete, or a test would fail later with a worse message.
    run(pip + ["check"])
    with open(STAMP, "w") as file:
        file.write(wanted())


def run(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        sys.exit(f"the Python packages of {REQUIREMENTS} cannot be installed: {' '.join(command)}\n{done.stdout}")


def path_of(program):
    if program == "python":
        return os.path.join(VENV, "bin/python")
    # The binary itself, not the script of the same name that the package puts on the PATH.
    return glob.glob(os.path.join(VENV, "lib/python*/site-packages/envoy/_bin/envoy"))[0]


def main(arguments):
    if arguments == ["check"]:
        return 0 if is_complete() else 1
    if arguments not in (["python"], ["envoy"]):
        print(__doc__, file=sys.stderr)
        return 2
    if not is_complete():
        os.makedirs(PLACE, exist_ok=True)
        with open(os.path.join(PLACE, "lock"), "w") as lock:
            # Tests that start together: one makes it, the others wait and find it made.
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not is_complete():
                make()
    print(path_of(arguments[0]))
    return 0


sys.exit(main(sys.argv[1:]))
