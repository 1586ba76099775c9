"""What vLLM servers are asked before a run starts, and the command that starts one the run can use."""

from __future__ import annotations

import json
import secrets
import shutil
from pathlib import Path

from resd_lightning.config import ConfigError, SamplingConfig, require
from resd_lightning.rollout.engine import Needs
from resd_lightning.rollout.vllm_client import RequestRefused, ServedModel, ServerError, VllmServer

KEY = "data.engine.init_args"
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's --max-lora-rank may be."""
TOKENIZER_PROBE = "RESD: 12 * 34 = 408?\n\tdef f(x): return x  # naïve"
"""Text whose tokens tell tokenizers apart."""


def check_server(server: VllmServer, folder: Path, needs: Needs) -> tuple[ServedModel, bool]:
    """Return the model that a server serves, and whether its log-probs are raw: at temperature 1 and uncut.

    Args:
        server: The server.
        folder: Where adapters are put, for this process and the server.
        needs: What the run will ask of it.

    Raises:
        ConfigError: It can't be reached, serves another tokenizer, is too short, or takes no adapters. The text says
            what to start it with.
    """
    try:
        base = _find_base(server, needs)
        _check_tokenizer(server, base, needs)
        _check_adapters(server, folder, needs)
        return base, server.is_raw(base.name)
    except ServerError as error:
        raise ConfigError(f"{KEY}.servers: {error}; start it with: {start_command(needs)}") from error


def check_log_probs(server: VllmServer, *, is_raw: bool, needs: Needs) -> None:
    """Refuse servers whose log-probs can't be compared, or can't weigh the loss, at the rollouts' sampling.

    Raises:
        ConfigError: Names what to set, or the option to start servers with or without.
    """
    given = given_temperature(needs.rollout, is_raw=is_raw)
    if given is None:
        raise ConfigError(
            f"{KEY}.servers: with --logprobs-mode processed_logprobs, log-probs can be compared with the trainer's "
            "only where nothing is cut off: set data.rollout.top_p 1 (and a temperature above 0), or start the "
            "server without that option"
        )
    if needs.is_weighed and given != needs.rollout.temperature:
        raise ConfigError(
            "model.distillation.importance_clip needs log-probs at data.rollout.temperature "
            f"{needs.rollout.temperature}, but {server.url} gives them at temperature 1: set "
            "data.rollout.temperature 1; or start it with --logprobs-mode processed_logprobs and set "
            "data.rollout.top_p 1; or set importance_clip null"
        )


def given_temperature(sampling: SamplingConfig, *, is_raw: bool) -> float | None:
    """Return the temperature that the servers' log-probs are at, over the whole vocabulary; None where cut."""
    if is_raw:
        return 1.0
    return sampling.temperature if sampling.temperature > 0 and sampling.top_p == 1 else None


def start_command(needs: Needs) -> str:
    """Return the command that starts a server for a run; the model stays a word where the run's own base is in NF4."""
    rank = 0 if needs.policy.lora is None else needs.policy.lora.rank
    allowed = next((largest for largest in LORA_RANKS if largest >= rank), rank)
    model = needs.policy.base if needs.policy.quantization == "none" else "FOLDER_OF_RESD_DEQUANTIZE"
    return (
        f"VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve {model} --dtype {needs.policy.dtype} --enable-lora "
        f"--max-lora-rank {allowed} --max-model-len {needs.longest_tokens}"
    )


def _find_base(server: VllmServer, needs: Needs) -> ServedModel:
    """Return the model that a server serves.

    Raises:
        ConfigError: It serves none, or one that is too short.
        ServerError: It doesn't answer.
    """
    models = server.models(is_patient=False)
    require(len(models) > 0, f"{KEY}.servers", "servers of a model", server.url)
    base = models[0]
    if base.max_tokens < needs.longest_tokens:
        raise ConfigError(
            f"{KEY}.servers: {server.url} takes {base.max_tokens} tokens, and prompts with their responses come to "
            f"{needs.longest_tokens}: {start_command(needs)}"
        )
    return base


def _check_tokenizer(server: VllmServer, base: ServedModel, needs: Needs) -> None:
    theirs = server.tokenize(base.name, TOKENIZER_PROBE)
    ours = tuple(needs.tokenizer.encode(TOKENIZER_PROBE, add_special_tokens=False))
    if theirs != ours:
        raise ConfigError(
            f"{KEY}.servers: {server.url} serves {base.root}, which has another tokenizer than model.policy.base "
            f"{needs.policy.base}: {start_command(needs)}"
        )


def _check_adapters(server: VllmServer, folder: Path, needs: Needs) -> None:
    """Have the server try an adapter of the run's rank that has no weights: how it fails says what it lacks."""
    assert needs.policy.lora is not None
    probe = folder / f"probe-{secrets.token_hex(4)}"
    probe.mkdir(parents=True)
    config: dict[str, object] = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "target_modules": ["q_proj"]}
    config |= {"r": needs.policy.lora.rank, "lora_alpha": needs.policy.lora.alpha}
    (probe / "adapter_config.json").write_text(json.dumps(config))
    try:
        server.load_adapter(f"resd-{probe.name}", probe, is_patient=False)
    except RequestRefused as error:
        if reason := _adapter_trouble(error, folder):
            raise ConfigError(f"{KEY}.servers: {server.url} {reason}: {start_command(needs)}") from error
    finally:
        shutil.rmtree(probe, ignore_errors=True)


def _adapter_trouble(error: RequestRefused, folder: Path) -> str | None:
    """Return why a server refused an adapter without weights; None where only the weights were missing.

    The words are those of vLLM 0.32. Of others nothing is concluded: the first adapter that is pushed will tell.
    """
    if error.status in (404, 405) and "No adapter found" not in error.said:
        return "lets no adapter be loaded while it runs"
    if "No adapter found" in error.said:
        return f"doesn't see {KEY}.adapter_folder {folder}, which must be the same folder there"
    if "LoRA is not enabled" in error.said:
        return "was started without --enable-lora"
    if "max_lora_rank" in error.said:
        return f"was started for smaller adapters ({error.said})"
    return None
