"""What open(2), write(2), poll(2), select(2) and epoll(7) say of a pressure file, a line for each attempt."""
import errno
import os
import select
import sys

ALL = 0x1 | 0x2 | 0x4 | 0x40 | 0x80 | 0x100 | 0x200

TEXTS = [
    b"some 150000 2000000\n", b"some 150000 2000000\0", b"full 150000 2000000\n",
    b"some 150000  2000000 and more\n", b"some\t150000\n2000000\n", b"some150000 2000000\n",
    b"some\xa0150000\xa02000000\n", b"some 2000000 2000000\n", b"some 1 10000000\n",
    b"some 4295117296 4296967296\n", b"some 150000 1000000\n", b"some 150000 500000\n",
    b" some 150000 2000000\n", b"Some 150000 2000000\n", b"any 150000 2000000\n",
    b"some 150000\n", b"some 150000,2000000\n", b"some 0 2000000\n", b"some 2000001 2000000\n",
    b"some 1 12000000\n", b"some -1 2000000\n", b"some +1 2000000\n", b"some 0x10 2000000\n",
    b"some 1 0\n", b"\n", b"\0", b"\xff\xfe\n", b"x" * 31,
]


def name(error):
    return errno.errorcode[error.errno]


def attempt(what):
    try:
        return what()
    except OSError as error:
        return name(error)


def polled(fd):
    answers = []
    for events in (ALL, 0x2, 0x1):
        poll = select.poll()
        poll.register(fd, events)
        answers.append([event for _, event in poll.poll(0)])
    answers.append([len(ready) for ready in select.select([fd], [fd], [fd], 0)])
    with select.epoll() as epoll:
        epoll.register(fd, select.EPOLLPRI)
        answers.append([event for _, event in epoll.poll(0)])
    return answers


def written(path, text):
    fd = os.open(path, os.O_RDWR)
    try:
        return os.write(fd, text)
    finally:
        os.close(fd)


def main(path):
    for flags in ("O_RDONLY", "O_WRONLY", "O_RDWR"):
        fd = attempt(lambda: os.open(path, getattr(os, flags)))
        print(flags, fd if isinstance(fd, str) else polled(fd))
    for text in TEXTS:
        print(text, attempt(lambda: written(path, text)))
    try:
        fd = os.open(path, os.O_RDWR)
    except OSError as error:
        return
    # Nothing ever stalls for all of ten seconds here: there is no event.
    print("after a bad one", attempt(lambda: os.write(fd, b"bad\n")), polled(fd))
    print("set", attempt(lambda: os.write(fd, b"full 10000000 10000000\n")), polled(fd))
    print("again", attempt(lambda: os.write(fd, b"some 1 2000000\n")), polled(fd))
    print("again, and bad", attempt(lambda: os.write(fd, b"bad\n")))
    print("read", os.pread(fd, 11, 0))


main(sys.argv[1])
