"""The doorbell: small Celery messages that say "there may be work". The queue of record is the database."""

import contextlib
from typing import Any

from celery import Celery
from kombu import Queue

from storage.settings import Settings
from storage.transport import ALIAS

TASK = "distillery.doorbell"


def queue_name(settings: Settings, device: str) -> str:
    """The queue of jobs that need `device`: only workers that have it listen there."""
    return f"{settings.queue_prefix}-cuda" if device == "cuda" else settings.queue_prefix


def make_celery(settings: Settings, *, sender: bool = False) -> Celery:
    """The Celery application; docs/decisions/celery.md gives the reason for each value.

    Args:
        sender: for ringing only, with timeouts so short that a frozen broker delays nobody.
    """
    app = Celery("distillery", set_as_current=False)
    app.conf.update(
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_default_queue=queue_name(settings, "auto"),
        task_create_missing_queues=True,
        task_queues=[Queue(queue_name(settings, "auto")), Queue(queue_name(settings, "cuda"))],
        task_reject_on_worker_lost=False,
        task_publish_retry_policy={"max_retries": 0},
        broker_pool_limit=40,  # threads that ring a frozen broker must not wait for each other
        worker_pool="prefork",
        worker_concurrency=1,
        worker_pool_start_method="spawn",
        worker_proc_alive_timeout=60.0,  # else a busy machine's child, slow to import, is killed again and again
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_send_task_events=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        **(_embedded(settings) if settings.broker is None else _redis(settings.broker, sender)),
    )
    return app


def _embedded(settings: Settings) -> dict[str, Any]:
    folder = settings.broker_folder
    (folder / "messages").mkdir(parents=True, exist_ok=True)
    (folder / "control").mkdir(exist_ok=True)
    return {
        "broker_url": f"{ALIAS}://localhost",  # no host would be a warning at every start
        "task_acks_late": True,  # prefetch cannot be disabled here, and an early ack reserves one more
        "broker_transport_options": {
            "data_folder_in": str(folder / "messages"),
            "data_folder_out": str(folder / "messages"),
            "control_folder": str(folder / "control"),
            "polling_interval": 0.1,
        },
    }


def _redis(url: str, sender: bool) -> dict[str, Any]:
    seconds = 0.3 if sender else 30.0
    options: dict[str, Any] = {"socket_timeout": seconds, "socket_connect_timeout": seconds}
    if sender:
        options["max_retries"] = 0  # of the connection; sending has its own policy
    return {
        "broker_url": url,
        "task_acks_late": False,
        "worker_disable_prefetch": True,
        "broker_transport_options": options,
    }


class Doorbell:
    """Rings, and never raises: a broker that is away does not concern the job."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._app = make_celery(settings, sender=True)

    def ring(self, device: str) -> bool:
        """Send one message to the workers with this device; whether the broker took it."""
        try:
            self._app.send_task(TASK, queue=queue_name(self._settings, device), ignore_result=True)
        except Exception:  # whatever the broker's client raises: the reconciler rings again
            return False
        return True

    def waiting(self, device: str) -> int | None:
        """Messages that nobody has heard yet; None where the broker does not answer."""
        with contextlib.suppress(Exception):
            return self.count(device)
        return None

    def count(self, device: str) -> int:
        """As `waiting`, but raises whatever the broker's client raises."""
        with self._app.connection_for_write() as connection:
            queue = Queue(queue_name(self._settings, device))
            return int(queue(connection.default_channel).queue_declare().message_count)
