"""Sets a trigger that never fires in each of the files named, and says what becomes of it when the cgroup goes."""
import errno
import os
import select
import sys

files = [os.open(path, os.O_RDWR) for path in sys.argv[1:]]
for fd in files:
    os.write(fd, b"full 10000000 10000000\n")
print("set", flush=True)
for fd in files:
    poll = select.poll()
    poll.register(fd, select.POLLPRI)
    answer = [event for _, event in poll.poll()]
    try:
        os.write(fd, b"some 1 2000000\n")
        print(answer, "written")
    except OSError as error:
        print(answer, errno.errorcode[error.errno], [event for _, event in poll.poll(0)])
print("end", flush=True)
