"""lists by name and status, and durations, where there are many jobs"""

from collections.abc import Sequence

from alembic import op

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_index("ix_jobs_owner_name_status_id", "jobs", ["owner", "name", "status", "id"])
    op.create_index("ix_jobs_times", "jobs", ["status", "finished_at", "started_at"])


def downgrade() -> None:
    op.drop_index("ix_jobs_times", table_name="jobs")
    op.drop_index("ix_jobs_owner_name_status_id", table_name="jobs")
