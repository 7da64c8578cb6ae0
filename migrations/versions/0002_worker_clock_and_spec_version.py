"""a worker's clock and the specs it reads

A worker of the version before goes on writing its row: both columns may stay empty.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    with op.batch_alter_table("workers") as batch_op:
        batch_op.add_column(sa.Column("clock_offset", sa.Double(), nullable=True))
        batch_op.add_column(sa.Column("spec_version", sa.Integer(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("workers") as batch_op:
        batch_op.drop_column("spec_version")
        batch_op.drop_column("clock_offset")
