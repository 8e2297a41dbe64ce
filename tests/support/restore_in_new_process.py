"""Run as a program: restore flows in this process, which has run none of them, and print what was restored.

Usage: `python -m support.restore_in_new_process DATABASE DURABILITY FLOW…`, with the server in `FLOWS_URI`;
each flow's session id is its name. Prints a dictionary of pictures in base64, pickled: JSON would lose types.
"""

import base64
import os
import pickle
import sys
from contextlib import ExitStack
from typing import Any

from support.flows import FLOWS
from support.stores import MongoStore, alternating_clients, restore, restored_picture


def main(database_name: str, durability: Any, *names: str) -> None:
    pictures = {}
    with ExitStack() as stack:
        clients = stack.enter_context(alternating_clients(os.environ["FLOWS_URI"]))
        for name in names:
            store = MongoStore(clients, database_name, durability, stack, session_id=name)
            pictures[name] = restored_picture(restore(FLOWS[name], store), store)
    sys.stdout.write(base64.b64encode(pickle.dumps(pictures)).decode())


if __name__ == "__main__":
    main(*sys.argv[1:])
