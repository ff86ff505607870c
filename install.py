"""Sets up the training environment: `python install.py`, also with `demo`, `test` or `--help`.

Web UIs run this file at every start and ComfyUI-Manager after an installation. Then it installs
nothing: the host side needs only what every host has, and the environment is made on request.
Written so that old Pythons can read it and say what is wrong; standard library only.
"""

import json
import os
import runpy
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
OLDEST = (3, 10)


def host_around(folder, variables):
    """The host that stands around this checkout ("WebUI", "ComfyUI"), or "" for none."""
    for entry in variables.get("PYTHONPATH", "").split(os.pathsep):
        names = ("launch.py", os.path.join("modules", "launch_utils.py"))
        if entry and all(os.path.isfile(os.path.join(entry, name)) for name in names):
            return "WebUI"
    parent = os.path.basename(os.path.dirname(folder))
    return {"extensions": "WebUI", "custom_nodes": "ComfyUI"}.get(parent, "")


def is_set_up():
    """Whether the training environment was finished once."""
    try:
        with open(os.path.join(HERE, ".venv", "dpdmd_studio.json")) as file:
            return json.load(file).get("ready") == "yes"
    except (OSError, ValueError, AttributeError):
        return False


def answer_host():
    """Say, in one line and only while it is missing, how to get the training environment."""
    if not is_set_up():
        print(
            'DP-DMD Studio: sampling is ready; for training, run once: python "{}" setup'.format(
                os.path.join(HERE, "install.py")
            )
        )
    return 0


def main(argv):
    """Exit status of this program."""
    if not argv and host_around(HERE, os.environ):
        return answer_host()
    if sys.version_info < OLDEST:
        sys.stderr.write(
            "error: this is Python {}.{} ({}); the training environment needs 3.10 to 3.13. "
            "Run install.py with one of those.\n".format(
                sys.version_info[0], sys.version_info[1], sys.executable
            )
        )
        return 1
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != HERE]
    runpy.run_path(os.path.join(HERE, "mount.py"))
    from dpdmd_studio.app.environment import installation

    return installation.main(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
