"""Sets as many triggers as it is told to, waits until each of them has had an event, and then for its standard input."""
import os
import resource
import select
import sys

path, count = sys.argv[1], int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (count + 64, count + 64))
poll = select.poll()
waiting = set()
for _ in range(count):
    fd = os.open(path, os.O_RDWR)
    os.write(fd, b"some 1000 2000000\n")
    poll.register(fd, select.POLLPRI)
    waiting.add(fd)
print("set", flush=True)
while waiting:
    for fd, event in poll.poll():
        assert event == select.POLLPRI, event
        waiting.discard(fd)
print("seen", flush=True)
sys.stdin.readline()
