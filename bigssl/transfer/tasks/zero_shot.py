"""Images, or sounds, to classes that are known by their names alone."""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field, field_validator
from torch import Tensor

from bigssl.report.values import shown
from bigssl.transfer.bench import Bench
from bigssl.transfer.scores import Score
from bigssl.transfer.subjects import Captions, Encoded
from bigssl.transfer.zero_shot import ByTexts, NamedClasses, class_names

NAME = "{}"


class ZeroShot(ByTexts):
    """Class of an image or a sound by the nearest class name, through the projections of CLIP (Radford et al. 2021).

    A class is the mean of the unit vectors of its names in all `templates`, renormalised. Beside it stands a row of the
    names without a template.
    """

    templates: list[str] = Field([NAME], min_length=1, description="texts with {} in place of a class name")

    @field_validator("templates")
    @classmethod
    def _have_a_place(cls, templates: list[str]) -> list[str]:
        for template in templates:
            if template.count(NAME) != 1:
                raise ValueError(f"{template!r} has {template.count(NAME)} places for a class name; allowed: one {{}}, "
                                 "as in 'a photo of {}'")  # fmt: skip
        if len(set(templates)) < len(templates):
            raise ValueError("a template stands twice")
        return templates

    def texts(self, captions: Captions) -> tuple[list[str], list[str]]:
        names, classes = class_names(captions.meta, self.label)
        forms = self._forms
        return [form.replace(NAME, name) for form in forms for name in names], classes * len(forms)

    @property
    def _forms(self) -> list[str]:
        """The templates, and last the name alone, where it is none of them."""
        return self.templates + [NAME] * (NAME not in self.templates)

    def run(self, bench: Bench) -> list[Score]:
        if self.templates == [NAME]:
            return super().run(bench)
        asked = self.asked(bench)
        each = asked.texts // len(self._forms)  # texts of a form
        of = {form: range(at * each, (at + 1) * each) for at, form in enumerate(self._forms)}
        alone = {form: asked.hits(texts) for form, texts in of.items()}
        self._tell(bench, asked, alone)
        together = asked.hits(range(len(self.templates) * each)) | asked.beside
        names = self.score(asked.queries, alone[NAME] | asked.beside, asked.classes, each)
        return [self._ensemble(asked, together, len(self.templates) * each), replace(names, row="names")]

    def _ensemble(self, asked: NamedClasses, hits: dict[str, Tensor], texts: int) -> Score:
        plain = self.score(asked.queries, hits, asked.classes, texts)
        subject = plain.subject.replace("class names alone", "class names in templates")
        return replace(plain, title=f"zero-shot {self.label}: {len(self.templates)} templates", subject=subject)

    def _tell(self, bench: Bench, asked: NamedClasses, alone: dict[str, dict[str, Tensor]]) -> None:
        if not bench.live:
            shares = {form: hits["trained"].double().mean().item() for form, hits in alone.items()}
            said = ", ".join(f"{form!r} {shown(share)}" for form, share in shares.items())
            plural = asked.queries.subject.takes.plural
            bench.note(f"{bench.where}: of {len(asked.queries)} {plural}, one template alone gets right: {said}.")

    def score(self, queries: Encoded, hits: dict[str, Tensor], classes: list[str], texts: int) -> Score:
        subject = f"of {len(queries)} unseen {queries.subject.takes.plural} get the right {self.label} of " \
                  f"{len(classes)} from class names alone"
        return Score(f"zero-shot {self.label}: names", subject, hits, queries.groups(self.item),
                     chance=1 / len(classes), facts={"classes": len(classes), "texts": texts})  # fmt: skip
