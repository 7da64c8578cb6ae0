"""Traps inside the service under test. Python imports this file at the start of every process of the service,
because the suite puts its folder on PYTHONPATH; the house itself knows nothing of it.

A *moment* is a place in the house: a function that is wrapped once its module was imported. Whoever passes a moment
for which an *order* lies in `$FAULTS_FOLDER/armed/<moment>` carries it out (dies, hangs, gets an error, …), and says
so in `$FAULTS_FOLDER/sprung/<id>.json`. An order is carried out by one process, or, while it lies there, by all.
"""

import contextlib
import ctypes
import functools
import importlib.abc
import importlib.machinery
import io
import json
import os
import pathlib
import resource
import signal
import sys
import threading
import time

FOLDER = os.environ.get("FAULTS_FOLDER")
MUTATION = os.environ.get("FAULTS_MUTATION")
real_time, real_time_ns = time.time, time.time_ns
doing = {"job": None, "attempt": None, "name": ""}


def role():
    """Which of the service's processes this is."""
    for name, mark in (("training", "worker.training"), ("child", "--billiard-fork")):
        if any(mark in argument for argument in sys.orig_argv):
            return name
    return sys.orig_argv[3] if sys.orig_argv[1:3] == ["-m", "distillery"] else "api"  # the API's own children


def order_for(moment):
    """The order that this process is to carry out now, or None."""
    path = f"{FOLDER}/armed/{moment}"
    if not os.path.exists(path):
        return None
    with contextlib.suppress(OSError, ValueError):
        with open(path) as file:
            order = json.load(file)
        if order.get("role") not in (None, role()) or order.get("job") not in (None, doing["job"]):
            return None
        if not order.get("lasting"):
            os.rename(path, f"{FOLDER}/sprung/.{order['id']}")  # of several processes one succeeds
        say(order)
        return order
    return None


def say(order):
    final = f"{FOLDER}/sprung/{order['id']}.json"
    if not os.path.exists(final):
        note = {"at": real_time(), "pid": os.getpid(), "parent": os.getppid(), "role": role(), **doing}
        with open(f"{final}.tmp{os.getpid()}", "w") as file:
            json.dump(note, file)
        os.replace(file.name, final)


def pass_moment(moment, hold=None):
    """Carry out what is ordered here; `swallow` where the caller shall not do its work."""
    order = order_for(moment)
    return obey(order, hold) if order is not None else None


def obey(order, hold):
    action, argument = order["action"], order.get("argument")
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "kill_worker":  # Celery's child and its parent
        os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "stop":  # and its supervisor: who is asleep cannot see that the lease runs out
        os.kill(os.getppid(), signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
    elif action == "exit":
        os._exit(argument)
    elif action == "segfault":
        ctypes.string_at(0)
    elif action == "hang":
        time.sleep(3600)
    elif action == "hang_with_gil":
        ctypes.PyDLL(None).sleep(3600)
    elif action == "error":
        raise OSError(argument, os.strerror(argument), "the disk of the test")
    elif action == "lose_reply":
        from sqlalchemy.exc import OperationalError

        raise OperationalError("COMMIT", None, Exception("the connection of the test was cut before the reply"))
    elif action == "slow":
        time.sleep(argument)
    elif action == "out_of_memory":
        import torch

        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, used + 2**26))
        torch.empty(2**28)
    elif action == "delay":
        threading.Timer(argument, hold).start()
        return "swallow"
    elif action == "hold":  # until the next one came, or for a while
        held.append(hold)
        threading.Timer(argument, let_go).start()
        return "swallow"
    elif action == "twice":
        hold()
    return action


held = []


def let_go():
    while held:
        held.pop()()


def before(module, name, moment):
    """Pass the moment before the function is called."""
    function = getattr(module, name)

    @functools.wraps(function)
    def wrapped(*args, **values):
        pass_moment(moment)
        return function(*args, **values)

    setattr(module, name, wrapped)


def after(module, name, moment):
    """Pass the moment when the function has done its work."""
    function = getattr(module, name)

    @functools.wraps(function)
    def wrapped(*args, **values):
        result = function(*args, **values)
        pass_moment(moment)
        return result

    setattr(module, name, wrapped)


class Shadow:
    """A module as another one sees it, some of its functions replaced."""

    def __init__(self, module, **replaced):
        self.__dict__.update(replaced)
        self._module = module

    def __getattr__(self, name):
        return getattr(self._module, name)


def trapped(function, moment):
    @functools.wraps(function)
    def wrapped(*args, **values):
        pass_moment(moment)
        return function(*args, **values)

    return wrapped


class Readable(type(pathlib.Path())):
    """A checkpoint's path."""

    def open(self, *args, **values):
        pass_moment("checkpoint.read")
        return super().open(*args, **values)


class Writable(type(pathlib.Path())):
    """A path in the artifact store."""

    def open(self, mode="r", *args, **values):
        file = super().open(mode, *args, **values)
        return file if "r" in mode else Halfway(file, "upload.write")


class Halfway:
    """A file that passes the moment when half of what is to be written lies on the disk."""

    def __init__(self, file, moment):
        self._file, self._moment = file, moment

    def write(self, content):
        order = order_for(self._moment)
        half = len(content) // 2 if order is not None else 0
        if order is not None:
            self._file.write(content[:half])
            self._file.flush()
            obey(order, None)
        return half + self._file.write(content[half:])

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._file.close()

    def __getattr__(self, name):
        return getattr(self._file, name)


def checkpoint(module):
    load, real = module.load, module.torch.save

    def save(content, file):
        order = order_for("checkpoint.write")
        if order is not None:
            whole = io.BytesIO()
            real(content, whole)
            file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
            file.flush()
            obey(order, None)
        real(content, file)

    module.torch = Shadow(module.torch, save=save)
    module.os = Shadow(os, fsync=trapped(os.fsync, "checkpoint.fsync"), replace=trapped(os.replace, "checkpoint.name"))
    module.load = functools.wraps(load)(lambda path, **values: load(Readable(path), **values))


def blobs(module):
    begin = module.BlobStore.__init__
    module.BlobStore.__init__ = functools.wraps(begin)(lambda self, root: begin(self, Writable(root)))
    module.os = Shadow(os, replace=trapped(os.replace, "upload.name"))


def queue(module):
    ring = module.Doorbell.ring

    def wrapped(self, device):
        if pass_moment("ring", functools.partial(ring, self, device)) == "swallow":
            return True
        rung = ring(self, device)
        let_go()
        return rung

    module.Doorbell.ring = wrapped


def slot(module):
    run = module.Slot._run

    def wrapped(self, job):
        doing.update(job=job.id, attempt=job.attempt, name=job.name)
        if job.name.startswith("poison"):
            obey({"action": "kill_worker"}, None)
        pass_moment("claimed")
        try:
            return run(self, job)
        finally:
            doing.update(job=None, attempt=None, name="")

    module.Slot._run = wrapped
    after(module.attempts, "claim", "claim")


def attempt(module):
    run, publish = module.run, module.publish

    def wrapped(fence, inbox):
        doing.update(job=fence.job_id, attempt=fence.attempt)
        return run(fence, inbox)

    def uploaded(ledger, *args):
        """Its one transaction comes when all is uploaded."""
        ledger.write = trapped(ledger.write, "publish")
        try:
            return publish(ledger, *args)
        finally:
            del ledger.write

    module.run = wrapped
    module.publish = uploaded
    before(module, "find_resume", "resume")
    after(module, "publish", "published")


def actions(module):
    request = module.request

    def wrapped(session, job_id, owner, action):
        request(session, job_id, owner, action)
        doing.update(job=job_id)
        pass_moment(f"action.{action}")

    module.request = wrapped
    after(module, "remove", "action.delete")


def records(module):
    record = module.record_checkpoint

    def wrapped(session, *args, **values):
        session.info["committed"] = "checkpoint.committed"
        return record(session, *args, **values)

    module.record_checkpoint = wrapped
    before(module, "record_checkpoint", "checkpoint.row")


def database(module):
    write = module.Database.write

    @contextlib.contextmanager
    def wrapped(self):
        with write(self) as session:
            yield session
        if "committed" in session.info:
            pass_moment(session.info["committed"])

    module.Database.write = wrapped


def attempts(module):
    after(module, "yield_job", "yield")
    after(module, "succeed", "succeed")


def reconciler(module):
    before(module, "_ring", "reconcile")
    after(module, "release", "takeover")


MOMENTS = {
    "kdcore.checkpoint": [checkpoint],
    "kdcore.session": [lambda module: after(module.Session, "step_done", "step")],
    "storage.actions": [actions],
    "storage.attempts": [attempts],
    "storage.blobs": [blobs],
    "storage.database": [database],
    "storage.queue": [queue],
    "storage.reconciler": [reconciler],
    "storage.records": [records],
    "storage.retention": [lambda module: before(module, "_remove_file", "sweep")],
    "storage.submissions": [lambda module: after(module, "submit", "submit")],
    "worker.attempt": [attempt],
    "worker.slot": [slot],
}


def unfenced_finish(module):
    """The attempt's check is removed from finish: whoever comes last publishes."""
    from storage import lifecycle

    publish, holds, finishing = module.publish, lifecycle.Fence.holds, threading.local()

    def unfenced(self):
        return module.Job.id == self.job_id if getattr(finishing, "now", False) else holds(self)

    def wrapped(*args):
        finishing.now = True
        return publish(*args)

    lifecycle.Fence.holds = unfenced
    lifecycle.TRANSITIONS["succeeded"] = (frozenset(lifecycle.Status), lifecycle.Status.SUCCEEDED)
    module.publish = wrapped


def artifacts_in_place(module):
    """Artifacts are written under their final name from the start."""

    def put(self, source):
        content = source.read_bytes()
        digest = f"sha256:{module.hashlib.sha256(content).hexdigest()}"
        final = self._path(digest)
        final.parent.mkdir(parents=True, exist_ok=True)
        if not final.exists():
            with final.open("wb") as file:
                file.write(content)
        return digest, len(content)

    module.BlobStore.put = put


def no_takeover(module):
    """Nobody takes back a job whose lease ran out."""
    module._take_back = lambda database, settings: []


MUTATIONS = {
    "unfenced_finish": ("worker.attempt", unfenced_finish),
    "artifacts_in_place": ("storage.blobs", artifacts_in_place),
    "no_takeover": ("storage.reconciler", no_takeover),
}


class Finder(importlib.abc.MetaPathFinder):
    """Finds the house's modules as Python does, and wraps what is to be wrapped once they are loaded."""

    def find_spec(self, name, path, target=None):
        if name not in MOMENTS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            for patch in MOMENTS[name]:
                patch(module)

        spec.loader.exec_module = exec_module
        return spec


def shift_clock(seconds):
    """This machine's clock is wrong."""
    time.time = lambda: real_time() + seconds
    time.time_ns = lambda: real_time_ns() + int(seconds * 1e9)


if FOLDER is not None:
    if MUTATION:
        place, mutate = MUTATIONS[MUTATION]
        MOMENTS[place].insert(0, mutate)
    sys.meta_path.insert(0, Finder())
    if os.environ.get("FAULTS_CLOCK"):
        shift_clock(float(os.environ["FAULTS_CLOCK"]))
