"""A Unix-socket relay that loses what a test wants lost: the answer, the request, or a stream half-way."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import threading
from types import TracebackType


class Relay:
    """Relays each connection to `target` with a thread; a context manager.

    `lose_answers` / `lose_requests`: how many of the coming requests whose first bytes contain `only` lose their answer
    (after the server gave it) or never reach the server; both end with a closed connection. `cut_after`: close a
    connection after so many bytes of answers.
    """

    def __init__(self, target: str) -> None:
        self._root = tempfile.mkdtemp(prefix="net", dir="/tmp")
        self.path = os.path.join(self._root, "relay.sock")
        self.target = target
        self.only = b""
        self.lose_answers = self.lose_requests = 0
        self.cut_after: int | None = None
        self.lost = 0
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen(16)
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._relay, args=(client,))
            self._threads.append(thread)
            thread.start()

    def _relay(self, client: socket.socket) -> None:
        server = socket.socket(socket.AF_UNIX)
        self._open += [client, server]
        try:
            server.connect(self.target)
            sent = 0
            while request := client.recv(1 << 20):
                if self.only in request and self.lose_requests:
                    self.lose_requests -= 1
                    self.lost += 1
                    return
                server.sendall(request)
                while True:
                    answer = server.recv(1 << 20)
                    if not answer:
                        return
                    if self.only in request and self.lose_answers:
                        self.lose_answers -= 1
                        self.lost += 1
                        return
                    if self.cut_after is not None and sent + len(answer) > self.cut_after:
                        client.sendall(answer[: self.cut_after - sent])
                        self.cut_after = None
                        self.lost += 1
                        return
                    client.sendall(answer)
                    sent += len(answer)
                    if b"x-ndjson" not in answer and b"chunked" not in answer and answer.startswith(b"HTTP"):
                        break  # a document came whole: the next request
        except OSError:
            pass  # one side has gone; so does the other
        finally:
            client.close()
            server.close()

    def __enter__(self) -> Relay:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each in (self._listener, *self._open):
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # not connected, or closed already
            each.close()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()
        shutil.rmtree(self._root)
