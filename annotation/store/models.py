"""The tables, as SQLAlchemy's typed ORM; `migrations/` holds how a database got them.

Nothing that people have said is ever updated or deleted: a newer correction supersedes an older one, and
a withdrawal puts the older one back. What may change is only who works on what (Assignment, QueueEntry),
and where an item is known to come from (annotation.store.items.add_item).
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import JSON, DateTime, ForeignKey, Index, MetaData, String, Text, UniqueConstraint
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, InstrumentedAttribute, Mapped, mapped_column, relationship
from sqlalchemy.types import TypeDecorator

from m3agiqa.aspects import RATING_WORDS, Aspect, MosScale, Rating


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC; SQLite gives back moments without a time zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC) if value.tzinfo is None else value


def now() -> datetime:
    return datetime.now(UTC)


class AsText(TypeDecorator[StrEnum]):
    """A StrEnum, stored as its word."""

    impl = String(20)
    cache_ok = True

    def __init__(self, kind: type[StrEnum]) -> None:
        super().__init__()
        self.kind = kind

    def process_bind_param(self, value: StrEnum | None, dialect: Dialect) -> str | None:
        return None if value is None else str(self.kind(value))

    def process_result_value(self, value: str | None, dialect: Dialect) -> StrEnum | None:
        return None if value is None else self.kind(value)


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={  # so that migrations can name what they change
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012
        datetime: UtcDateTime(),
        Aspect: AsText(Aspect),
        Rating: AsText(Rating),
        dict[str, Any]: JSON(),
    }


# --- what is judged ----------------------------------------------------------------------------


class Image(Base):
    """An image file, known by its content."""

    __tablename__ = "images"

    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    file: Mapped[str] = mapped_column(String(80))
    """Path within the folder of image files."""
    name: Mapped[str] = mapped_column(Text)
    """What its first owner called it."""
    width: Mapped[int]
    height: Mapped[int]
    size: Mapped[int]
    """Bytes."""
    added_at: Mapped[datetime] = mapped_column(default=now)


class Prompt(Base):
    """A prompt's text; "" stands for none."""

    __tablename__ = "prompts"

    id: Mapped[int] = mapped_column(primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    text: Mapped[str] = mapped_column(Text)


class Generator(Base):
    """The model that made images."""

    __tablename__ = "generators"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(200), unique=True)


class Item(Base):
    """An image with its prompt: what is assessed, annotated and exported."""

    __tablename__ = "items"
    __table_args__ = (UniqueConstraint("image_sha256", "prompt_id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    image_sha256: Mapped[str] = mapped_column(ForeignKey("images.sha256"))
    prompt_id: Mapped[int] = mapped_column(ForeignKey("prompts.id"))
    generator_id: Mapped[int | None] = mapped_column(ForeignKey("generators.id"))
    source: Mapped[str] = mapped_column(String(200), index=True)
    """Where it came from: "demo" or the name of an import."""
    added_at: Mapped[datetime] = mapped_column(default=now)

    image: Mapped[Image] = relationship()
    prompt: Mapped[Prompt] = relationship()
    generator: Mapped[Generator | None] = relationship()
    gold: Mapped[list[GoldAnswer]] = relationship()
    assessments: Mapped[list[Assessment]] = relationship(back_populates="item")


class GoldAnswer(Base):
    """The known answer of a calibration image: a score within `tolerance` of `score` is right."""

    __tablename__ = "gold_answers"

    item_id: Mapped[int] = mapped_column(ForeignKey("items.id"), primary_key=True)
    aspect: Mapped[Aspect] = mapped_column(primary_key=True)
    score: Mapped[float]
    tolerance: Mapped[float] = mapped_column(default=1.0)


# --- what models say ---------------------------------------------------------------------------


class ModelVersion(Base):
    """A model that has assessed something."""

    __tablename__ = "model_versions"
    __table_args__ = (UniqueConstraint("title", "digest"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(String(200))
    digest: Mapped[str] = mapped_column(String(64))
    """Hash of the checkpoint (m3agiqa.checkpoint.card.Card.digest)."""
    learned_from: Mapped[str] = mapped_column(Text)
    added_at: Mapped[datetime] = mapped_column(default=now)


class Assessment(Base):
    """What a model says of an item."""

    __tablename__ = "assessments"
    __table_args__ = (Index(None, "item_id", "model_version_id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    item_id: Mapped[int] = mapped_column(ForeignKey("items.id"))
    model_version_id: Mapped[int] = mapped_column(ForeignKey("model_versions.id"))
    annotator_id: Mapped[int | None] = mapped_column(ForeignKey("annotators.id"))
    """Who asked for it; None for the queue's own."""
    seconds: Mapped[float]
    created_at: Mapped[datetime] = mapped_column(default=now)

    item: Mapped[Item] = relationship(back_populates="assessments")
    model_version: Mapped[ModelVersion] = relationship()
    aspects: Mapped[list[AspectAssessment]] = relationship(back_populates="assessment")

    @property
    def uncertainty(self) -> float:
        """That of its most uncertain aspect."""
        return max((aspect.uncertainty for aspect in self.aspects), default=0.0)


class AspectAssessment(Base):
    """One aspect of an assessment."""

    __tablename__ = "aspect_assessments"

    assessment_id: Mapped[int] = mapped_column(ForeignKey("assessments.id"), primary_key=True)
    aspect: Mapped[Aspect] = mapped_column(primary_key=True)
    description: Mapped[str] = mapped_column(Text)
    rating: Mapped[Rating]
    """The word of the MOS; in older rows, without a spoken rating, the language model's own."""
    spoken_rating: Mapped[Rating | None]
    mos: Mapped[float]
    raw_mos: Mapped[float]
    scale_low: Mapped[float]
    scale_high: Mapped[float]
    spread: Mapped[float | None]
    """Standard deviation over predictors trained with other seeds, in points of MOS."""

    assessment: Mapped[Assessment] = relationship(back_populates="aspects")

    @property
    def scale(self) -> MosScale:
        return MosScale(self.scale_low, self.scale_high)

    @property
    def uncertainty(self) -> float:
        """Distance of the MOS from the range of the spoken rating, plus the spread, in units of the scale."""
        unit = self.scale.to_unit(self.mos)
        low = RATING_WORDS.index(self.spoken_rating or self.rating) / len(RATING_WORDS)
        distance = max(low - unit, unit - low - 1 / len(RATING_WORDS), 0.0)
        return distance + (self.spread or 0.0) / (self.scale_high - self.scale_low)


class PooledStates(Base):
    """What the regression head read for one aspect of an assessment, by which items are compared."""

    __tablename__ = "pooled_states"

    assessment_id: Mapped[int] = mapped_column(ForeignKey("assessments.id"), primary_key=True)
    aspect: Mapped[Aspect] = mapped_column(primary_key=True)
    states: Mapped[bytes]
    """See annotation.store.informative; its length depends on the model."""


# --- what people say ---------------------------------------------------------------------------


class Annotator(Base):
    """A person who has said something, by the name of the login."""

    __tablename__ = "annotators"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(200), unique=True)
    added_at: Mapped[datetime] = mapped_column(default=now)


class Submission(Base):
    """What a person saved in one go: corrections of one item's aspects."""

    __tablename__ = "submissions"

    id: Mapped[int] = mapped_column(primary_key=True)
    token: Mapped[str] = mapped_column(String(64), unique=True)
    """Made by the page, so that what is sent twice is saved once."""
    item_id: Mapped[int] = mapped_column(ForeignKey("items.id"), index=True)
    annotator_id: Mapped[int] = mapped_column(ForeignKey("annotators.id"), index=True)
    assessment_id: Mapped[int | None] = mapped_column(ForeignKey("assessments.id"))
    """What the person had before them; None if nothing."""
    place: Mapped[str] = mapped_column(String(20))
    """Where it was said: "assess", "annotate", "import"."""
    blind: Mapped[bool]
    """Whether everybody's answers, the model's too, were hidden until the score was given."""
    seconds: Mapped[float]
    """Time that the person spent."""
    created_at: Mapped[datetime] = mapped_column(default=now)

    item: Mapped[Item] = relationship()
    annotator: Mapped[Annotator] = relationship()
    assessment: Mapped[Assessment | None] = relationship()
    corrections: Mapped[list[Correction]] = relationship(back_populates="submission")


class Correction(Base):
    """What a person says of one aspect: agreement with the model, or a score and description of their own.

    The current one, for an item, aspect and annotator, is that of the highest revision which is not
    withdrawn.
    """

    __tablename__ = "corrections"
    __table_args__ = (UniqueConstraint("item_id", "aspect", "annotator_id", "revision"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    submission_id: Mapped[int] = mapped_column(ForeignKey("submissions.id"), index=True)
    item_id: Mapped[int] = mapped_column(ForeignKey("items.id"))
    aspect: Mapped[Aspect]
    annotator_id: Mapped[int] = mapped_column(ForeignKey("annotators.id"), index=True)
    revision: Mapped[int]
    """1, 2, ... for this item, aspect and annotator; two tabs cannot both write the same one."""
    agrees: Mapped[bool]
    """Whether this is the model's own answer, confirmed."""
    score: Mapped[float]
    scale_low: Mapped[float]
    scale_high: Mapped[float]
    description: Mapped[str | None] = mapped_column(Text)
    """In the person's words, or the model's if they kept them; None if they gave a score alone."""
    comment: Mapped[str | None] = mapped_column(Text)
    tags: Mapped[list[CorrectionTag]] = relationship()

    submission: Mapped[Submission] = relationship(back_populates="corrections")
    withdrawal: Mapped[Withdrawal | None] = relationship(back_populates="correction")

    @property
    def scale(self) -> MosScale:
        return MosScale(self.scale_low, self.scale_high)


class CorrectionTag(Base):
    """A kind of error that a person sees (annotation.store.corrections.ERROR_TAGS, or their own word)."""

    __tablename__ = "correction_tags"

    correction_id: Mapped[int] = mapped_column(ForeignKey("corrections.id"), primary_key=True)
    tag: Mapped[str] = mapped_column(String(60), primary_key=True)


class Withdrawal(Base):
    """An undone correction; what it had superseded is current again."""

    __tablename__ = "withdrawals"

    correction_id: Mapped[int] = mapped_column(ForeignKey("corrections.id"), primary_key=True)
    created_at: Mapped[datetime] = mapped_column(default=now)

    correction: Mapped[Correction] = relationship(back_populates="withdrawal")


class Preference(Base):
    """The image that a person likes best of several of one prompt.

    The current one, for an annotator and a set of items, is the newest that is not withdrawn.
    """

    __tablename__ = "preferences"

    id: Mapped[int] = mapped_column(primary_key=True)
    token: Mapped[str] = mapped_column(String(64), unique=True)
    """Made by the page, so that what is sent twice is saved once."""
    annotator_id: Mapped[int] = mapped_column(ForeignKey("annotators.id"), index=True)
    model_version_id: Mapped[int] = mapped_column(ForeignKey("model_versions.id"))
    """Whose order the person had before them."""
    created_at: Mapped[datetime] = mapped_column(default=now)

    annotator: Mapped[Annotator] = relationship()
    model_version: Mapped[ModelVersion] = relationship()
    compared: Mapped[list[ComparedItem]] = relationship(order_by="ComparedItem.item_id")
    withdrawal: Mapped[PreferenceWithdrawal | None] = relationship()


class ComparedItem(Base):
    """One of the items that a preference is about."""

    __tablename__ = "compared_items"

    preference_id: Mapped[int] = mapped_column(ForeignKey("preferences.id"), primary_key=True)
    item_id: Mapped[int] = mapped_column(ForeignKey("items.id"), primary_key=True, index=True)
    preferred: Mapped[bool]
    """True for one of a preference's items."""
    overall: Mapped[float]
    """The model's score: the mean of the aspects, whatever weights the page had."""

    item: Mapped[Item] = relationship()


class PreferenceWithdrawal(Base):
    """An undone preference; what it had superseded is current again."""

    __tablename__ = "preference_withdrawals"

    preference_id: Mapped[int] = mapped_column(ForeignKey("preferences.id"), primary_key=True)
    created_at: Mapped[datetime] = mapped_column(default=now)


class AnswersOf(StrEnum):
    """Whose answers: what whoever scores blind has not read."""

    MODEL = "model"
    PEOPLE = "people"


class Exposure(Base):
    """That a person has been shown answers to one aspect of an item, on whatever tab."""

    __tablename__ = "exposures"

    annotator_id: Mapped[int] = mapped_column(ForeignKey("annotators.id"), primary_key=True)
    item_id: Mapped[int] = mapped_column(ForeignKey("items.id"), primary_key=True)
    aspect: Mapped[Aspect] = mapped_column(primary_key=True)
    answers_of: Mapped[AnswersOf] = mapped_column(AsText(AnswersOf), primary_key=True)
    score: Mapped[float | None]
    """What they had said of it before; None for nothing."""
    created_at: Mapped[datetime] = mapped_column(default=now)


# --- who does what -----------------------------------------------------------------------------


class QueueEntry(Base):
    """An item that is to be annotated."""

    __tablename__ = "queue_entries"

    item_id: Mapped[int] = mapped_column(ForeignKey("items.id"), primary_key=True)
    overlap: Mapped[int]
    """How many annotators it shall have."""
    taken: Mapped[int] = mapped_column(default=0)
    """How many slots of the overlap are held or done: counted anew whenever one of them changes."""
    order: Mapped[float]
    """Drawn once, so that a random order is the same one for everybody."""
    uncertainty: Mapped[float] = mapped_column(default=0.0)
    """That of the item's latest assessment; 0 if no model has assessed it."""
    added_at: Mapped[datetime] = mapped_column(default=now)

    item: Mapped[Item] = relationship()


def _index_of_free(name: str, *columns: InstrumentedAttribute[Any]) -> None:
    """An index for one order of handing out items, of those alone that have a free slot."""
    free = QueueEntry.taken < QueueEntry.overlap
    Index(f"ix_queue_entries_{name}", *columns, sqlite_where=free, postgresql_where=free)


_index_of_free("random", QueueEntry.order)
_index_of_free("uncertain", QueueEntry.uncertainty, QueueEntry.order)
_index_of_free("least", QueueEntry.taken, QueueEntry.order)


class WorkState(StrEnum):
    """How far a person is with an item."""

    HELD = "held"
    DONE = "done"
    SKIPPED = "skipped"


class Assignment(Base):
    """An item in a person's hands: a slot of its overlap, until it is done or the hold runs out."""

    __tablename__ = "assignments"
    __table_args__ = (
        UniqueConstraint("item_id", "slot"),
        Index(None, "annotator_id", "state"),
        Index(None, "annotator_id", "turn"),
        Index(None, "state", "held_until"),
    )

    item_id: Mapped[int] = mapped_column(ForeignKey("items.id"), primary_key=True)
    annotator_id: Mapped[int] = mapped_column(ForeignKey("annotators.id"), primary_key=True)
    slot: Mapped[int | None]
    """0 ... overlap - 1; None if skipped, if done when all slots were taken, and for calibration images."""
    turn: Mapped[int]
    """1, 2, ...: how many items this person had been given, with this one."""
    state: Mapped[WorkState] = mapped_column(AsText(WorkState))
    held_until: Mapped[datetime]


class Promotion(Base):
    """A checkpoint that an admin has put into service; the latest one is served."""

    __tablename__ = "promotions"

    id: Mapped[int] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(Text)
    """A shipped model's name, or the folder of a registered checkpoint."""
    annotator_id: Mapped[int] = mapped_column(ForeignKey("annotators.id"))
    created_at: Mapped[datetime] = mapped_column(default=now)


class SavedView(Base):
    """A view of the failure cases under a name; the latest of a name counts."""

    __tablename__ = "saved_views"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    query: Mapped[str] = mapped_column(Text)
    """Of a link to it (annotation.failures.filters.View.query); "" for a view that was removed."""
    annotator_id: Mapped[int] = mapped_column(ForeignKey("annotators.id"))
    created_at: Mapped[datetime] = mapped_column(default=now)

    annotator: Mapped[Annotator] = relationship(lazy="joined")


class ApiToken(Base):
    """What a user's programs sign in with, known by its hash alone; a user has one that is not revoked."""

    __tablename__ = "api_tokens"

    id: Mapped[int] = mapped_column(primary_key=True)
    user: Mapped[str] = mapped_column(String(100), index=True)
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    """SHA-256 of the token."""
    password_digest: Mapped[str] = mapped_column(String(64))
    """SHA-256 of the user's password hash: another user of the same name does not inherit the token."""
    created_at: Mapped[datetime] = mapped_column(default=now)
    last_used_at: Mapped[datetime | None]
    """To the minute."""
    revoked_at: Mapped[datetime | None]


class AuditEntry(Base):
    """Who did what and when, beside the corrections, which are a trail of their own."""

    __tablename__ = "audit_entries"

    id: Mapped[int] = mapped_column(primary_key=True)
    annotator_id: Mapped[int | None] = mapped_column(ForeignKey("annotators.id"))
    action: Mapped[str] = mapped_column(String(40))
    details: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(default=now)
