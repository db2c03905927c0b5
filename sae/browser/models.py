"""Routes with a language model: a prompt's latents, and steering."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from sae.browser.context import Answer, Context
from sae.features.steer.prompt import examine
from sae.features.steer.steer import Intervention, steer
from sae.runs.base import check_language

Text = Annotated[str, Field(min_length=1, max_length=20_000)]


class Prompt(BaseModel):
    """A text to examine."""

    model_config = ConfigDict(extra="forbid")
    text: Text


class Push(BaseModel):
    """The intervention on one latent."""

    model_config = ConfigDict(extra="forbid")
    latent: Annotated[int, Field(ge=0)]
    mode: Literal["add", "set", "ablate"] = "add"
    strength: Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)] = 1.0


class Steer(BaseModel):
    """A text to continue, plain and steered."""

    model_config = ConfigDict(extra="forbid")
    prompt: Text
    interventions: Annotated[list[Push], Field(min_length=1, max_length=16)]
    tokens: Annotated[int, Field(ge=1, le=256)] = 40
    temperature: Annotated[float, Field(ge=0, le=5, allow_inf_nan=False)] = 0.0
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0


def add_routes(app: FastAPI, context: Context) -> None:

    @app.post("/api/runs/{index}/prompt")
    async def prompt(index: int, body: Prompt) -> Response:
        run = context.run(index)
        check_language(run.folder, "a prompt")
        examined = await context.worker.do(run.folder, partial(examine, text=body.text))
        view = run.view()
        latents = {entry["latent"] for row in examined["latents"] for entry in row}
        rows = {latent: view.listing.row(latent, view.marks) for latent in sorted(latents)}
        return Answer({**examined, "rows": rows})

    @app.post("/api/runs/{index}/steer")
    async def steered(index: int, body: Steer) -> Response:
        run = context.run(index)
        check_language(run.folder, "steering")
        store = run.view().store
        pushes = [Intervention(push.latent, push.mode, push.strength) for push in body.interventions]
        settings = {"tokens": body.tokens, "temperature": body.temperature, "seed": body.seed, "store": store}
        job = partial(steer, prompt=body.prompt, interventions=pushes, **settings)
        return Answer(await context.worker.do(run.folder, job))
