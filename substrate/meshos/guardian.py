"""The guardian: one small single-threaded process per node that starts daemons and, above all, ends them.

It exists so that nothing runs twice. It stops every process tree it started when the node's end of the socket
closes (the node died), and when the lease deadline on CLOCK_BOOTTIME passes (the node is frozen, or cut off
from the engine). It lives in its own session, so a stop of the node's process group does not reach it.

Standard library only, and `substrate.meshos.__init__` must import nothing: it runs without site-packages.
It never blocks: one poll over the node's socket, a timer, child exits and the pipes of half-started children.

A *tree* is everything that came from one spawn. As a child subreaper the guardian is the ancestor of every process
it ever caused, however often they fork; each belongs to the tree of its ancestor, its session, its group, or
its mark (see `proctree`). A process that shed all four belongs to no instance, could not be stopped with one,
and is killed when a scan meets it.

Wire: JSON objects, one per packet of a SOCK_SEQPACKET pair. Commands: spawn (with two descriptors: stdout, stderr),
stop, kill, deadline, shutdown. Events: ready, failed, started, spawn-failed, exited, stuck, deadline, fenced, bye.
Source: architecture, "Real effects".
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import time
from array import array
from collections import deque
from typing import Any, Final

from substrate.meshos import proctree
from substrate.meshos.linux import BoottimeTimer, become_subreaper
from substrate.meshos.proctree import Proc
from substrate.meshos.takeover import take_over
from substrate.meshos.tree import Tree, exec_child, how_it_ended

MAX_PACKET_BYTES: Final = 160 * 1024
"""Largest command; the kernel's default socket buffer takes no more than 208 KiB in one packet."""
MAX_TREES: Final = 1024
MAX_QUEUED_EVENTS: Final = 8 * MAX_TREES
"""A node that reads none of these is as good as dead."""
STUCK_AFTER_S: Final = 10.0
"""A tree that survives SIGKILL this long (a process in uninterruptible I/O) is reported, and tried on."""


class Guardian:
    """The state and the loop. `node` is the connected socket, `node_fd` a pidfd of the node's process.

    The pidfd tells of the node's death even when a process it forked still holds its end of the socket.
    Spawns are refused before the first deadline.
    """

    def __init__(self, node: socket.socket, node_fd: int, token: str) -> None:
        node.setblocking(False)
        self.node = node
        self.node_fd = node_fd
        self.token = token
        self.trees: dict[str, Tree] = {}
        self.spawned = 0
        self.deadline_ns: int | None = None
        self.closing: str | None = None
        self.connected = True
        self.outbox: deque[bytes] = deque()
        self.timer = BoottimeTimer()
        self.wake_r, wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # a handler must exist for the wake-up byte to be written
        signal.signal(signal.SIGTERM, lambda *_: self.close("signal"))
        for signum in (signal.SIGINT, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)
        self.poll = select.poll()
        self.poll.register(node, select.POLLIN)
        self.poll.register(self.wake_r, select.POLLIN)
        self.poll.register(self.timer.fd, select.POLLIN)
        self.poll.register(node_fd, select.POLLIN)

    def run(self) -> None:
        """Serve until told to shut down or the node is gone, and nothing that was started is left."""
        self.emit("ready", pid=os.getpid(), token=self.token)
        while True:
            self.flush()
            for fd, _ in self.poll.poll(self.wait_ms()):
                if fd == self.wake_r:
                    os.read(fd, 4096)
                elif fd == self.timer.fd:
                    self.timer.clear()
                elif fd == self.node.fileno():
                    self.receive()
                elif fd == self.node_fd:
                    self.poll.unregister(fd)
                    self.close("node-died")
                else:
                    self.finish_exec(fd)
            self.reap()
            self.check_deadline()
            left = self.advance()
            if self.closing is not None and not self.trees and not left:
                self.emit("bye", reason=self.closing)
                self.flush()
                return

    def wait_ms(self) -> int | None:
        """How long poll may sleep: until the next kill or scan is due; for ever when no tree is ending."""
        due = []
        for tree in self.trees.values():
            if tree.status is not None or (tree.kill_at is not None and time.monotonic() >= tree.kill_at):
                due.append(tree.scan_at)
            elif tree.kill_at is not None:
                due.append(tree.kill_at)
        if self.closing is not None and not self.trees:
            due.append(time.monotonic() + 0.01)
        return None if not due else max(0, int((min(due) - time.monotonic()) * 1000) + 1)

    # --- what the node says ---

    def receive(self) -> None:
        """Handle every packet that waits."""
        while self.connected:
            try:
                data, fds, flags = receive_packet(self.node)
            except BlockingIOError:
                return
            except ConnectionResetError:
                data, fds, flags = b"", [], 0
            if not data:
                self.connected = False
                self.poll.unregister(self.node)
                self.close("node-died")
                return
            try:
                if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                    raise ValueError("a command was cut off in transit")
                self.command(json.loads(data), fds)
            except (ValueError, KeyError, TypeError) as error:
                # Only a bug in our own node can get here; saying so is better than guessing what it meant.
                self.emit("failed", error=f"bad command: {error!r}")
                self.close("bad-command")
            finally:
                for fd in fds:
                    os.close(fd)

    def command(self, command: dict[str, Any], fds: list[int]) -> None:
        """Do what one command says."""
        name = command["command"]
        if name == "spawn":
            self.spawn(command, fds)
        elif name == "stop":
            self.stop(self.trees.get(command["key"]), command["grace_ms"] / 1000)
        elif name == "kill":
            self.stop(self.trees.get(command["key"]), 0)
        elif name == "deadline":
            self.deadline_ns = int(command["boottime_ns"])
            self.timer.set(self.deadline_ns)
            self.emit("deadline", boottime_ns=self.deadline_ns)
        elif name == "shutdown":
            self.close("shutdown", command["grace_ms"] / 1000)
        else:
            raise ValueError(f"unknown command {name!r}")

    def close(self, reason: str, grace_s: float = 0.0) -> None:
        """Take no more spawns, end everything, then leave the loop. A second call can only hasten it."""
        self.closing = self.closing or reason
        for tree in self.trees.values():
            self.stop(tree, grace_s)

    def stop(self, tree: Tree | None, grace_s: float) -> None:
        """SIGTERM to the group now, SIGKILL to the whole tree after the grace; at once when there is no grace."""
        if tree is None:
            return  # it has just ended, and its `exited` is on the way
        if grace_s > 0 and tree.kill_at is None and not tree.group_gone:
            self.signal_group(tree, signal.SIGTERM)
            self.signal_group(tree, signal.SIGCONT)  # a stopped process could not hear the first one
        tree.end_by(time.monotonic() + grace_s)

    def signal_group(self, tree: Tree, signum: int) -> None:
        """Signal the tree's process group, or its first process when that has not made its group yet."""
        try:
            os.killpg(tree.pid, signum)
        except (ProcessLookupError, PermissionError):
            if tree.status is None:
                os.kill(tree.pid, signum)  # our own unreaped child: the pid cannot be anybody else's

    # --- starting ---

    def spawn(self, command: dict[str, Any], fds: list[int]) -> None:
        """Fork and exec, reporting `started` or `spawn-failed` once the exec has or has not happened."""
        key = command["key"]
        refusal = None
        if self.closing is not None:
            refusal = ("closing", "the guardian is shutting down")
        elif self.deadline_ns is None or time.clock_gettime_ns(time.CLOCK_BOOTTIME) >= self.deadline_ns:
            refusal = ("fenced", "the node holds no lease")
        elif key in self.trees:
            refusal = ("busy", "processes of an earlier start are still there")
        elif len(self.trees) >= MAX_TREES:
            refusal = ("limit", f"the limit of {MAX_TREES} running instances is reached")
        elif len(fds) != 2:
            refusal = ("descriptors", "stdout and stderr did not arrive")
        if refusal is not None:
            self.emit("spawn-failed", key=key, reason=refusal[0], error=refusal[1])
            return
        self.spawned += 1
        mark = f"{self.token}-{self.spawned}"
        report_r, report_w = os.pipe2(os.O_CLOEXEC)
        guardian = os.getpid()
        # Until the child has put the default handlers back, a signal meant to end it would be lost.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.fork()
        except OSError as error:
            os.close(report_r)
            self.emit("spawn-failed", key=key, reason="fork", error=error.strerror, errno=error.errno)
            return
        else:
            if pid == 0:
                exec_child(command, fds, report_w, guardian, mark)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            os.close(report_w)
        os.set_blocking(report_r, False)
        self.trees[key] = Tree(key, pid, mark, report_r)
        self.poll.register(report_r, select.POLLIN)

    def finish_exec(self, fd: int) -> None:
        """The pipe of a child has ended (it runs) or brought the reason why it could not be executed."""
        tree = next(tree for tree in self.trees.values() if tree.exec_fd == fd)
        try:
            data = os.read(fd, 4096)
        except BlockingIOError:
            return
        self.poll.unregister(fd)
        os.close(fd)
        tree.exec_fd = None
        if data:
            tree.failure = json.loads(data)
        else:
            self.emit("started", key=tree.key, pid=tree.pid, start_ticks=tree.start_ticks)

    # --- ending ---

    def reap(self) -> None:
        """Collect every child that has exited, adopted ones included."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            tree = next((tree for tree in self.trees.values() if tree.pid == pid and tree.status is None), None)
            if tree is None:
                continue
            if tree.exec_fd is not None:
                self.finish_exec(tree.exec_fd)
            tree.status = status
            if tree.failure is not None:  # never executed: there was nothing else of it
                del self.trees[tree.key]
                self.emit("spawn-failed", key=tree.key, reason="exec", **tree.failure)
            elif tree.kill_at is None:
                tree.end_by(0.0)  # the daemon is over: what it left behind must not meet its successor

    def check_deadline(self) -> None:
        """At the deadline: kill everything, and refuse spawns until a deadline in the future arrives."""
        if self.deadline_ns is None or time.clock_gettime_ns(time.CLOCK_BOOTTIME) < self.deadline_ns:
            return
        self.deadline_ns = None
        self.emit("fenced", reason="deadline")
        for tree in self.trees.values():
            tree.end_by(0.0)

    def advance(self) -> bool:
        """Take the ending trees one step on. True while processes that belong to no tree are left, when closing."""
        now = time.monotonic()
        due = [
            tree
            for tree in self.trees.values()
            if tree.scan_at <= now and (tree.status is not None or (tree.kill_at is not None and tree.kill_at <= now))
        ]
        if not due and (self.closing is None or self.trees):
            return False
        owned, strays = self.sort_processes()
        for proc in strays:
            proctree.send_signal(proc, signal.SIGKILL)
        for tree in due:
            self.step(tree, owned.get(tree.key, []), now)
        return bool(strays)

    def step(self, tree: Tree, procs: list[Proc], now: float) -> None:
        """One scan of an ending tree: kill what is there, or report it over after two empty scans."""
        if tree.status is not None and not any(tree.pid in (proc.session, proc.pgrp) for proc in procs):
            tree.group_gone = True
        tree.scan_at = now + tree.scan_delay_s
        tree.scan_delay_s = min(tree.scan_delay_s * 2, 0.5 if tree.stuck_reported else 0.05)
        if tree.status is not None and not procs:
            tree.empty_scans += 1  # the second scan sees what forked behind the back of the first
            if tree.empty_scans >= 2:
                del self.trees[tree.key]
                self.emit("exited", key=tree.key, pid=tree.pid, tree_empty=True, **how_it_ended(tree.status))
            return
        tree.empty_scans = 0
        if tree.kill_at is None or now < tree.kill_at:
            return  # within its grace
        tree.killing_since = tree.killing_since or now
        if not tree.group_gone:
            self.signal_group(tree, signal.SIGKILL)  # the whole group at once: it cannot fork its way out
        for proc in procs:
            proctree.send_signal(proc, signal.SIGKILL)
        if now - tree.killing_since > STUCK_AFTER_S and not tree.stuck_reported:
            tree.stuck_reported = True
            self.emit("stuck", key=tree.key, pids=sorted(proc.pid for proc in procs)[:100])

    def sort_processes(self) -> tuple[dict[str, list[Proc]], list[Proc]]:
        """Scan: the live processes of each tree by key, and the strays that belong to none."""
        children = proctree.children_of(proctree.read_all())
        owned: dict[str, list[Proc]] = {}
        strays: list[Proc] = []
        mains = {tree.pid: tree for tree in self.trees.values()}
        marks = {tree.mark: tree for tree in self.trees.values()}
        stack: list[tuple[Proc, Tree | None]] = [(proc, None) for proc in children.get(os.getpid(), [])]
        while stack:
            proc, tree = stack.pop()
            if tree is None:
                for number in (proc.pid, proc.session, proc.pgrp):
                    candidate = mains.get(number)
                    if candidate is not None and candidate.owns_group(number):
                        tree = candidate
            if tree is None:
                tree = marks.get(proctree.mark_of(proc.pid) or "")
            if tree is None:
                strays.append(proc)
            else:
                owned.setdefault(tree.key, []).append(proc)
            stack.extend((child, tree) for child in children.get(proc.pid, []))
        return owned, strays

    # --- what the node hears ---

    def emit(self, event: str, **fields: Any) -> None:
        """Queue one event for the node."""
        if not self.connected:
            return
        if len(self.outbox) >= MAX_QUEUED_EVENTS:
            self.connected = False
            self.poll.unregister(self.node)
            self.close("node-deaf")
            return
        self.outbox.append(json.dumps({"event": event, **fields}).encode())

    def flush(self) -> None:
        """Send what the socket takes; the rest when it is writable again."""
        while self.outbox and self.connected:
            try:
                self.node.send(self.outbox[0])
            except BlockingIOError:
                self.poll.modify(self.node, select.POLLIN | select.POLLOUT)
                return
            except (BrokenPipeError, ConnectionResetError):
                return  # the end of the socket is read by receive(), which acts on it
            self.outbox.popleft()
        if self.connected:
            self.poll.modify(self.node, select.POLLIN)


def receive_packet(connection: socket.socket) -> tuple[bytes, list[int], int]:
    """One packet with the descriptors that came with it, and its flags."""
    # Not socket.recv_fds: Python 3.11's drops the flags, and every daemon would inherit the descriptors.
    room = socket.CMSG_SPACE(2 * array("i").itemsize)
    data, ancillary, flags, _ = connection.recvmsg(MAX_PACKET_BYTES, room, socket.MSG_CMSG_CLOEXEC)
    fds = array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return data, fds.tolist(), flags


def main(argv: list[str]) -> int:
    """`--dir NODE_DIR --fd N [--limit-ms N]`: the node's directory and the number of the inherited socket."""
    options = dict(zip(argv[::2], argv[1::2], strict=True))
    node = socket.socket(fileno=int(options["--fd"]))
    node.set_inheritable(False)
    become_subreaper()
    node_fd = os.pidfd_open(os.getppid())
    try:
        token = take_over(options["--dir"], node, int(options.get("--limit-ms", "15000")) / 1000)
    except TimeoutError as error:
        node.send(json.dumps({"event": "failed", "error": str(error)}).encode())
        return 1
    if token is None:
        return 0
    Guardian(node, node_fd, token).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
