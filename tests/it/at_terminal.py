"""Runs a program at a terminal, answers the question that it asks, and tells how it ended and what it showed.

Reads {"args", "env", "folder", "question", "answer"} as JSON from standard input, and prints {"code", "shown"}.
"""

import json
import os
import pty
import sys

asked = json.load(sys.stdin)
pid, terminal = pty.fork()
if pid == 0:
    os.chdir(asked["folder"])
    os.execve(asked["args"][0], asked["args"], asked["env"])

shown, is_answered = b"", False
while True:
    try:
        part = os.read(terminal, 4096)
    except OSError:  # So Linux says that nobody has the other end any more.
        break
    if not part:
        break
    shown += part
    if not is_answered and asked["question"].encode() in shown:
        os.write(terminal, asked["answer"].encode() + b"\n")
        is_answered = True
_, status = os.waitpid(pid, 0)
print(json.dumps({"code": os.waitstatus_to_exitcode(status), "shown": shown.decode()}))
