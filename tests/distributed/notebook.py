"""A live kernel for the tests of `%%ranks`: run a cell, interrupt, restart, kill."""

from __future__ import annotations

import contextlib
import queue
import time

from jupyter_client.manager import KernelManager


class Kernel:
    """A Python kernel in which labkit.parallel is loaded."""

    def __init__(self, folder):
        self.manager = KernelManager(kernel_name="python3")
        self.manager.start_kernel(cwd=str(folder))
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)
        self.run("%load_ext labkit.parallel")

    def begin(self, code):
        """Start a cell."""
        return self.client.execute(code)

    def end(self, message_id, timeout=120.0):
        """The outputs of a cell when it is done: streams' text, display data (the last of each id), value, error."""
        told = {"text": "", "shown": [], "value": None, "error": None, "updates": 0}
        deadline = time.monotonic() + timeout
        while True:
            message = self.client.get_iopub_msg(timeout=max(0.1, deadline - time.monotonic()))
            if message["parent_header"].get("msg_id") != message_id:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "stream":
                told["text"] += content["text"]
            elif kind in ("display_data", "update_display_data"):
                if "text/html" in content["data"]:
                    told["updates"] += kind == "update_display_data"
                    told["shown"] = [*(told["shown"] if kind == "display_data" else []), content["data"]]
            elif kind == "execute_result":
                told["value"] = content["data"]["text/plain"]
            elif kind == "error":
                told["error"] = content
            elif kind == "status" and content["execution_state"] == "idle":
                return told

    def run(self, code, timeout=120.0):
        """A whole cell."""
        return self.end(self.begin(code), timeout)

    def close(self):
        with contextlib.suppress(queue.Empty, RuntimeError):
            self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)
