"""Playing in time: messages are read ahead in one thread and published on time in another; keys of a terminal."""

from __future__ import annotations

import os
import re
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from lidar_semseg_ros.core.errors import UserError
from lidar_semseg_ros.formats.bags import BagMessage
from lidar_semseg_ros.formats.playback import PlaybackClock

READ_AHEAD_BYTES = 32 * 2**20
MESSAGE_OVERHEAD_BYTES = 10_000
"""How much is read in advance: some ten large clouds, or at most some thousand messages, however small."""
LEAD = 3
"""So many messages are ready before the first is sent, lest time must wait for the second."""

CLOCK_PERIOD_S = 0.01
FINE_WAIT_S = 0.002
"""How long before a message is due the wait is no longer one that a command can interrupt."""


@dataclass(frozen=True)
class ReadyMessage:
    """A message as it will be sent."""

    topic: str
    log_time_ns: int
    data: bytes


class ReadAhead:
    """Reads and converts messages in a thread, a bounded number of bytes in advance.

    wake: is notified when a message is ready and at the end. complain: is told of messages that cannot be converted;
    these are left out.
    """

    def __init__(
        self, messages: Iterator[BagMessage], wake: threading.Condition, complain: Callable[[str], None]
    ) -> None:
        self._messages, self._wake, self._complain = messages, wake, complain
        self._ready: deque[ReadyMessage] = deque()
        self._bytes = 0
        self._ended = False
        self._stopping = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._read, name="read-ahead", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for message in self._messages:
                try:
                    ready = ReadyMessage(message.topic, message.log_time_ns, message.cdr())
                except UserError as error:
                    self._complain(f"a message is left out: {error}")
                    continue
                if not self._put(ready):
                    return
        except Exception as error:  # handed to the thread that plays
            self._error = error
        finally:
            with self._wake:
                self._ended = True
                self._wake.notify_all()

    def _put(self, message: ReadyMessage) -> bool:
        with self._wake:
            self._wake.wait_for(lambda: self._bytes < READ_AHEAD_BYTES or self._stopping)
            self._bytes += len(message.data) + MESSAGE_OVERHEAD_BYTES
            self._ready.append(message)
            if len(self._ready) <= LEAD:  # else nobody waits for it
                self._wake.notify_all()
            return not self._stopping

    @property
    def is_at_end(self) -> bool:
        """Whether everything was taken and nothing more comes; raises what ended the reading early."""
        if self._ready or not self._ended:
            return False
        if self._error is not None:
            raise self._error
        return True

    @property
    def has_lead(self) -> bool:
        """Whether enough is ready to begin playing."""
        return len(self._ready) >= LEAD or self._ended

    def peek(self) -> ReadyMessage | None:
        """Look at the next message, if it is ready."""
        return self._ready[0] if self._ready else None

    def pop(self) -> None:
        """Take the next message."""
        with self._wake:
            message = self._ready.popleft()
            self._bytes -= len(message.data) + MESSAGE_OVERHEAD_BYTES
            self._wake.notify_all()

    def stop(self) -> None:
        """Stop reading and wait until nobody uses the recording any more."""
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
        self._thread.join()


class Playback:
    """Publishes the messages of a recording when they are due, in the thread that calls `play`; obeys any thread.

    messages_from: yields the messages from a log time on. publish, tick: send a message, and the time in ns.
    is_step: whether a step ends with a message of this topic.
    """

    def __init__(
        self,
        messages_from: Callable[[int], Iterator[BagMessage]],
        publish: Callable[[str, bytes], None],
        tick: Callable[[int], None],
        is_step: Callable[[str], bool],
        complain: Callable[[str], None],
        *,
        rate: float,
        paused: bool,
    ) -> None:
        self._messages_from, self._publish, self._tick = messages_from, publish, tick
        self._is_step, self._complain = is_step, complain
        self._wake = threading.Condition()
        self._clock = PlaybackClock(rate)
        self._paused = paused
        self._steps = 0
        self._target_ns: int | None = None
        self._stopping = False
        self._next_tick_s = 0.0
        self._told_ns = 0
        self.published = 0

    @property
    def is_paused(self) -> bool:
        """Whether the time of the recording is made to stand still."""
        return self._paused

    def pause(self, paused: bool) -> None:
        """Let the time stand still, or go on."""
        with self._wake:
            self._paused, self._steps = paused, 0
            self._wake.notify_all()

    def step(self) -> None:
        """Publish everything up to the next message that ends a step, without waiting for it to be due."""
        with self._wake:
            self._steps += 1
            self._wake.notify_all()

    def seek(self, time_ns: int) -> None:
        """Go on at this time of the recording."""
        with self._wake:
            self._target_ns, self._steps = time_ns, 0
            self._wake.notify_all()

    def time_ns(self) -> int:
        """Tell the time in the recording, or to where it is about to jump."""
        with self._wake:
            return self._clock.time_ns(time.monotonic()) if self._target_ns is None else self._target_ns

    def stop(self) -> None:
        """Make `play` return."""
        with self._wake:
            self._stopping = True
            self._wake.notify_all()

    def play(self, start_ns: int) -> bool:
        """Play from a log time to the end, or raise what is wrong with the recording there; False if it was stopped.

        Time begins with the first message if that comes later.
        """
        target_ns, skips_gap = self._take_target(), False
        if target_ns is None:
            target_ns, skips_gap = start_ns, True
        while target_ns is not None and not self._stopping:
            ahead = ReadAhead(self._messages_from(target_ns), self._wake, self._complain)
            try:
                self._play_from(target_ns, ahead, skips_gap)
            finally:
                ahead.stop()
            target_ns, skips_gap = self._take_target(), False
        return not self._stopping

    def _take_target(self) -> int | None:
        with self._wake:
            target_ns, self._target_ns = self._target_ns, None
            return target_ns

    def _play_from(self, start_ns: int, ahead: ReadAhead, skips_gap: bool) -> None:
        """Play until the end, a jump or a stop."""
        with self._wake:
            self._wake.wait_for(lambda: self._is_interrupted() or ahead.has_lead)
        first = ahead.peek()
        self._told_ns = max(start_ns, first.log_time_ns) if first and skips_gap else start_ns
        self._clock.set(self._told_ns, time.monotonic())
        while not self._is_interrupted():
            message = ahead.peek()
            is_late = message is None and not ahead.is_at_end
            now_s = time.monotonic()
            # While the reader is behind, time waits for it: else the next messages would come all at once.
            (self._clock.hold if self._paused or is_late else self._clock.run)(now_s)
            if message is not None and (self._steps or self._clock.wait_s(message.log_time_ns, now_s) <= 0):
                self._send(message, now_s)
                ahead.pop()  # afterwards: it wakes the reader, which would compete for the interpreter
            elif message is None and not is_late and not self._paused:
                return
            else:
                self._wait_for(message, now_s)

    def _is_interrupted(self) -> bool:
        return self._stopping or self._target_ns is not None

    def _send(self, message: ReadyMessage, now_s: float) -> None:
        with self._wake:
            if self._steps:
                self._clock.set(max(message.log_time_ns, self._clock.time_ns(now_s)), now_s)
                self._steps -= self._is_step(message.topic)
        self._tell(message.log_time_ns)
        self._publish(message.topic, message.data)
        self.published += 1

    def _tell(self, time_ns: int) -> None:
        """Send the time, which never goes back but by a jump: a latched message may be older than the start."""
        self._told_ns = max(self._told_ns, time_ns)
        self._tick(self._told_ns)

    def _wait_for(self, message: ReadyMessage | None, now_s: float) -> None:
        """Wait until a message or the next tick of the clock is due, or until there is something new to do."""
        if now_s >= self._next_tick_s:
            self._tell(self._clock.time_ns(now_s))
            self._next_tick_s = max(self._next_tick_s + CLOCK_PERIOD_S, now_s)
        wait_s = self._next_tick_s - now_s
        if message is not None:
            wait_s = min(wait_s, self._clock.wait_s(message.log_time_ns, now_s))
        if wait_s <= FINE_WAIT_S:
            time.sleep(max(0.0, wait_s))
        else:
            with self._wake:
                if not self._is_interrupted():
                    self._wake.wait(wait_s - FINE_WAIT_S / 2)


class Keyboard:
    """Calls a function for each key pressed on the terminal, in a thread; `stop` gives the terminal back.

    actions: by the bytes a key sends. Where standard input is no terminal, or that of a process in the background,
    it does nothing.
    """

    def __init__(self, actions: Mapping[bytes, Callable[[], object]]) -> None:
        self._actions = actions
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._file = sys.stdin.fileno()
        if os.isatty(self._file) and os.tcgetpgrp(self._file) == os.getpgrp():
            self._take_terminal()

    def _take_terminal(self) -> None:
        import termios
        import tty

        self._settings = termios.tcgetattr(self._file)
        tty.setcbreak(self._file)
        self._thread = threading.Thread(target=self._read, name="keyboard", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while not self._stopping.is_set():
            if select.select([self._file], [], [], 0.1)[0]:
                pressed = os.read(self._file, 64)
                if not pressed:  # the terminal is gone
                    return
                for key in re.findall(rb"\x1b\[.|.", pressed):  # arrows send three bytes, letters one
                    self._actions.get(key, lambda: None)()

    def stop(self) -> None:
        """Stop reading and restore the terminal."""
        if self._thread is not None:
            import termios

            self._stopping.set()
            self._thread.join()
            termios.tcsetattr(self._file, termios.TCSADRAIN, self._settings)
