"""uploads: datasets and models that users bring, their parts, and which jobs read them"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

Json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
BigInt = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "uploads",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("owner", sa.String(100), nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("file", sa.String(255), nullable=False),
        sa.Column("size", BigInt, nullable=False),
        sa.Column("part_size", BigInt, nullable=False),
        sa.Column("options", Json, nullable=False),
        sa.Column("announced", sa.String(80), nullable=True),
        sa.Column("digest", sa.String(80), nullable=True),
        sa.Column("check_id", sa.String(64), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["check_id"], ["jobs.id"], name=op.f("fk_uploads_check_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_uploads")),
    )
    op.create_index(op.f("ix_uploads_digest"), "uploads", ["digest"])
    op.create_index(op.f("ix_uploads_check_id"), "uploads", ["check_id"])
    op.create_index("ix_uploads_owner_kind_name_version", "uploads", ["owner", "kind", "name", "version"], unique=True)
    op.create_table(
        "upload_names",
        sa.Column("owner", sa.String(100), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("owner", "kind", "name", name=op.f("pk_upload_names")),
    )
    op.create_table(
        "upload_parts",
        sa.Column("upload_id", sa.String(64), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("size", BigInt, nullable=False),
        sa.Column("digest", sa.String(80), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["upload_id"], ["uploads.id"], name=op.f("fk_upload_parts_upload_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("upload_id", "number", name=op.f("pk_upload_parts")),
    )
    op.create_table(
        "job_uploads",
        sa.Column("job_id", sa.String(64), nullable=False),
        sa.Column("upload_id", sa.String(64), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_uploads_job_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["upload_id"], ["uploads.id"], name=op.f("fk_job_uploads_upload_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", "upload_id", name=op.f("pk_job_uploads")),
    )
    op.create_index(op.f("ix_job_uploads_upload_id"), "job_uploads", ["upload_id"])


def downgrade() -> None:
    for table in ("job_uploads", "upload_parts", "upload_names", "uploads"):
        op.drop_table(table)
    # The version before would take checks for jobs. SQLite cascades nothing while it migrates.
    for table in ("events", "attempts", "artifacts"):
        op.execute(f"DELETE FROM {table} WHERE substr(job_id, 1, 4) = 'chk_'")
    op.execute("DELETE FROM jobs WHERE substr(id, 1, 4) = 'chk_'")
