"""Sets triggers, each given as PATH=TRIGGER, and prints for each when its events came, in microseconds, on a line.

All are set by one process and waited for at once, by the system call named: only so can they be compared.
"""
import os
import select
import sys
import time

how, seconds, triggers = sys.argv[1], float(sys.argv[2]), sys.argv[3:]
events = {}
for path, trigger in (argument.split("=") for argument in triggers):
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    os.write(fd, trigger.encode() + b"\n")
    events[fd] = []

if how == "select":
    def wait(left):
        return [(fd, select.POLLPRI) for fd in select.select([], [], list(events), left)[2]]
elif how == "poll":
    poll = select.poll()
    for fd in events:
        poll.register(fd, select.POLLPRI)

    def wait(left):
        return poll.poll(left * 1000)
else:
    epoll = select.epoll()
    for fd in events:
        epoll.register(fd, select.EPOLLPRI)
    wait = epoll.poll

end = time.monotonic() + seconds
while (left := end - time.monotonic()) > 0:
    for fd, event in wait(left):
        assert event == select.POLLPRI, event
        events[fd].append(time.monotonic_ns() // 1000)
for times in events.values():
    print(*times)
