"""Why a cell is valid, suspect or invalid: what was checked, what was found, what to do. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from benchbench.analysis.metrics import RoundMetrics, in_blocks
from benchbench.analysis.reasons import Reason
from benchbench.analysis.summary import BOUNDED, CellSummary, tail_of, within_limit
from benchbench.analysis.utilization import Utilization
from benchbench.analysis.validity import Evidence, remedy
from benchbench.datasets.row_lengths import lengths_text
from benchbench.explain.outliers import outlier_rounds
from benchbench.host.energy import IDLE_SHARE, DeviceUse, Usage
from benchbench.identity.answering_engines import answered_by
from benchbench.model.roofline import Platform, touched_bytes
from benchbench.prefixes.hits import Hits
from benchbench.prefixes.words import diagnosis, shared_words
from benchbench.replicas.replica_words import apart_lines, server_lines
from benchbench.speculation.acceptance import acceptance_words
from benchbench.steadiness.steadiness import drift
from benchbench.store.arrow import Floats


def explain(summary: CellSummary, more: Mapping[str, str] = MappingProxyType({}), urls: Sequence[str] = ()) -> str:
    """A paragraph for one cell: its status, one line a check, each reason with its remedy, and `more` lines.

    `urls`: the addresses of its servers, where there are several.
    """
    cell, evidence = summary.cell, summary.evidence
    lines = [f"{cell.label} {cell.load} [{cell.key}]: {summary.status}"]
    if not evidence.rounds:
        return f"{lines[0]}\n  no round was finished: nothing could be checked"
    checks = {
        "requests": _requests(evidence),
        **({"servers": "; ".join(lines_of)} if (lines_of := server_lines(evidence.by_server, urls)) else {}),
        "input": _input(evidence, cell.prompts),
        "output": _output(evidence, cell.output_mode),
        **({"lengths": _lengths(summary)} if cell.lengths else {}),
        "prefix cache": _cache(evidence),
        **({"shared prefixes": _shared(summary, evidence.hits)} if evidence.hits else {}),
        "preemptions": _known(evidence.preemptions, "counted by the server"),
        "server's counts": _counts(evidence),
        "server's times": _times(summary),
        **({"drafts": acceptance_words(evidence.acceptance)} if evidence.acceptance else {}),
        "warm-up": _warmup(summary),
        "rounds": _rounds(summary),
        "steadiness": _steadiness(summary.rounds),
        "tails": _tails(summary),
        **({"SLO": slo} if (slo := _slo(summary)) else {}),
        "client": _client(summary),
        "clock": f"largest step of wall against monotonic clock {evidence.clock_step_ns / 1e3:.0f} us, "
        + _stamps(evidence),
        **({"roofline": _roofline(summary.utilization)} if summary.utilization else {}),
        **more,
        **_telemetry(summary.usage, evidence.rounds),
    }
    lines += [f"  {what + ':':16} {text}" for what, text in checks.items()]
    details = {
        Reason.MIXED_ENGINES: names if len(names := answered_by(summary.facts)) > 1 else (),
        Reason.OTHER_MODEL: evidence.other_models,
        Reason.QUEUED: _places(evidence),
        Reason.OVERLOADED: (
            f"by {evidence.ttft_grew_s * 1e3:.0f} ms from the middle third of its requests to the last",
        ),
        Reason.DRIFT: (_DRIFT[evidence.drift_confirmed],),
        Reason.GPU_IN_USE: evidence.in_use,
        Reason.THROTTLED: evidence.throttled,
        Reason.STRAGGLER: evidence.straggler,
        Reason.UNEVEN_REPLICAS: apart_lines(evidence.by_server, urls),
        Reason.FASTER_THAN_HARDWARE: evidence.too_fast,
        Reason.FASTER_THAN_LIKELY: evidence.unlikely,
        Reason.HIT_RATE: (diagnosis(evidence.hits),) if evidence.hits else (),
    }
    for reason in summary.reasons:
        where = f" ({'; '.join(details[reason])})" if details.get(reason) else ""
        lines.append(
            f"  {reason.status}: {reason.code}: {reason.meaning}{where}; {remedy(reason, evidence, cell.validity)}"
        )
    return "\n".join(lines)


def _percent(share: float, places: int = 0, sign: str = "") -> str:
    return f"{share * 100:{sign}.{places}f} %"


def _requests(evidence: Evidence) -> str:
    good = evidence.requests - evidence.failed - evidence.wrong_length
    text = f"{good} of {evidence.requests} as asked, {evidence.failed} failed"
    text += f", {evidence.wrong_length} of another length"
    return text + (f", {evidence.resent} sent again" if evidence.resent else "")


def _input(evidence: Evidence, prompts: str) -> str:
    kinds = {"token_ids": "token ids, exact by construction", "text": "random words, made to length"}
    how = kinds.get(prompts, f"prompts of {prompts}")
    if evidence.input_unknown:
        return f"{how}; the server reported no input length for {evidence.input_unknown} requests"
    if evidence.input_about:
        return f"{how}; by usage about the asked length, another in {evidence.input_about} requests"
    return f"{how}; usage contradicts the asked length in {evidence.input_wrong} requests"


def _lengths(summary: CellSummary) -> str:
    """Laws as asked, then what there was; a bound by hardware needs one length."""
    row: dict[str, Any] = {"lengths": summary.cell.lengths}
    for axis in ("input", "output"):
        pool = summary.pools[f"{axis}_tokens"]
        row |= {f"{axis}_tokens": pool.mean, **{f"{axis}_tokens_p{q}": pool.percentiles[q] for q in (50, 99)}}
    means = {"input": summary.cell.input, "output": summary.cell.output}
    spread = [f"{axis} {text}" for axis in means if (text := lengths_text({**row, **means}, axis))]
    return f"asked {summary.cell.lengths}; measured {', '.join(spread)}; no roofline, which needs one length"


def _output(evidence: Evidence, mode: str) -> str:
    text = "exactly as asked, else a failure" if mode == "exact" else "as served"
    text += f"; {evidence.output_unknown} requests without usage and token ids"
    text += f", {evidence.usage_wrong} whose usage contradicts what was received"
    text += f", {evidence.hidden} with tokens that were not sent" if evidence.hidden else ""
    text += (
        f", {evidence.below_limit} that ended for their length below the limit asked" if evidence.below_limit else ""
    )
    grouped = f", {evidence.grouped} of {evidence.events} events held several tokens"
    return text + (grouped if evidence.grouped else "")


def _known(count: int | None, words: str) -> str:
    return "not known: the server has no /metrics of vLLM's kind" if count is None else f"{count:,} {words}"


def _cache(evidence: Evidence) -> str:
    hits = _known(evidence.prefix_hits, "tokens found there by /metrics")
    common = (
        f", {evidence.common_tokens:,} in common by the prompts' form (BOS, template)" if evidence.common_tokens else ""
    )
    return f"{evidence.cached_tokens:,} cached tokens in usage; {hits}{common}"


def _shared(summary: CellSummary, hits: Hits) -> str:
    """The hit rate, and TTFT of hits and of misses: mean, p50, p99 over all rounds."""
    parts = [(r.ttft_s[r.hits.hit], r.ttft_s[~r.hits.hit]) for r in summary.rounds if r.hits]
    return shared_words(hits, *(_spread(np.concatenate(times)) for times in zip(*parts, strict=True)))


def _spread(times_s: Floats) -> str:
    if not len(times_s):
        return "none"
    values = [times_s.mean(), *np.percentile(times_s, (50, 99))]
    return "/".join(f"{value * 1e3:.2f}" for value in values) + " ms (mean/p50/p99)"


def _counts(evidence: Evidence) -> str:
    if evidence.replicas:
        return "another process's than before (start time changed, or a count went down): no check possible"
    if evidence.unchecked:
        return f"not known in {evidence.unchecked} of {evidence.rounds} rounds: /metrics did not answer"
    if evidence.foreign_tokens is None:
        return "not known"
    if evidence.foreign_tokens:
        return f"the server served {evidence.foreign_tokens:,} tokens that are not ours"
    if evidence.missing_tokens:
        fewer = f"the server counted {evidence.missing_tokens:,} tokens fewer than we received"
        return f"{fewer}, as one of several behind a proxy would"
    return "equal to ours"


def _times(summary: CellSummary) -> str:
    server, tpot, pace = summary.evidence.server, summary.estimates["tpot"], summary.evidence.pace
    if server is None and pace:
        text = f"by its answers the tokens after the first event took it {pace.made_s * 1e3:.2f} ms in the mean"
        return f"{text}, and {pace.came_s * 1e3:.2f} to come; its TTFT is not told"
    if server is None:
        by = "neither in answers (vLLM: --enable-per-request-metrics) nor for ours alone by /metrics"
        return f"not told, {by}: whether something between holds answers back and paces them is not known"
    waited = "" if server.queue_s is None else f", {server.queue_s * 1e3:.2f} of them in its queue"
    itl = "" if server.itl_s is None else f"; mean ITL {server.itl_s * 1e3:.2f} ms"
    ours = f", our TPOT {tpot.point * 1e3:.2f}" if itl and tpot else ""
    by, outside = "/metrics", "HTTP, network and client"
    if server.source == "requests":
        by, outside = f"{server.requests} of its answers", f"API server, {outside}"
    if summary.evidence.in_process:
        outside = "vLLM's front end and the client, in one process"
    return (
        f"mean TTFT {server.ttft_s * 1e3:.2f} ms by {by}{waited}; ours is "
        f"{(server.ttft_s + server.outside_s) * 1e3:.2f}: {server.outside_s * 1e3:+.2f} ms by {outside}{itl}{ours}"
    )


def _stamps(evidence: Evidence) -> str:
    if evidence.in_process:
        return "stamps of the engine's own process"
    return "kernel receive stamps" if evidence.kernel_stamps else "user-space stamps"


def _places(evidence: Evidence) -> tuple[str, ...]:
    places, batch = evidence.places, evidence.in_flight
    fewer = places is not None and batch is not None and places.most < batch
    return (f"the tokens of {places.most} at once, at most, of {batch}",) if places and fewer else ()


def _warmup(summary: CellSummary) -> str:
    count = f"{len(summary.warmups)} rounds"
    agreed = summary.evidence.warmup_agreed
    if agreed is None:
        return f"{count}, as asked"
    return f"{count}, the last two {'agree' if agreed else 'do not agree'} in mean E2EL"


def _rounds(summary: CellSummary) -> str:
    evidence, cell = summary.evidence, summary.cell
    mean, high = summary.estimate("sys_tok_s"), summary.estimate("sys_tok_s", "high")
    reached = f"Sys tok/s known to ±{_percent((high - mean) / mean, 2)}" if mean and high is not None else "no interval"
    again = f"; {summary.spoiled} more were spoiled, are set aside and were measured again" if summary.spoiled else ""
    needed = f"{evidence.rounds_needed} needed for ±{_percent(cell.rel_ci, 1)}"
    return f"{evidence.rounds} measured, {needed}; {reached}{again}"


def _tails(summary: CellSummary) -> str:
    """The upper bounds of percentiles, and where there are none why: alike for all of a rank but ITL."""
    of = "starts" if in_blocks(summary.rounds) else "rounds"
    texts, few = [], dict[str, list[str]]()
    for name, rank, _ in BOUNDED:
        bound, title = tail_of(summary, f"{name}_s", rank), f"{name.upper()} p{rank}"
        if bound.upper is not None:
            texts.append(f"{title} at most {bound.upper * 1e3:.4g} ms")
        elif bound.samples:
            what = "gaps" if name == "itl" else "requests"
            count = f"{bound.samples:,} {what} in {bound.groups} {of} count as {bound.effective:.0f} independent ones"
            few.setdefault(count, []).append(f"{title} ({bound.needed} needed)")
    sure = f"{', '.join(texts)}, with 95 % confidence" if texts else ""
    blank = [f"no upper bound of {', '.join(titles)}: {why}" for why, titles in few.items()]
    return "; ".join([*filter(None, [sure]), *blank]) or "nothing received"


def _slo(summary: CellSummary) -> str:
    """The share of requests within each limit, and within all: `TTFT 99.2 % within 200 ms`."""
    slo, goodput, req_s = summary.cell.slo, summary.estimate("goodput_req_s"), summary.estimate("req_s")
    shares = {name: within_limit(summary, name) for name in ("ttft", "tpot", "e2el")}
    texts = [
        f"{name.upper()} of {_percent(share, 2)} within {getattr(slo, f'{name}_ms'):g} ms"
        for name, share in shares.items()
        if share is not None
    ]
    every = f"; goodput {_percent(goodput / req_s, 2)} of req/s" if texts and goodput is not None and req_s else ""
    return ", ".join(texts) + every


_DRIFT = {
    True: "confirmed by further rounds",
    False: "not confirmed, as no further rounds could be measured: 1 in 100 steady cells looks like this",
}


def _steadiness(rounds: tuple[RoundMetrics, ...]) -> str:
    values = [r.sys_tok_s for r in rounds if r.sys_tok_s is not None]
    fitted = drift(values)
    odd = ", ".join(str(number) for number in outlier_rounds(values)) or "none"
    if fitted is None:
        return f"too few rounds to see a drift; outlier rounds: {odd}"
    change = _percent(fitted[0], 2, "+")
    return f"Sys tok/s changed by {change} over the rounds (p = {fitted[1]:.2g}); outlier rounds: {odd}"


def _client(summary: CellSummary) -> str:
    evidence, facts = summary.evidence, summary.facts
    lag = summary.pools["lag_s"].percentiles
    lags = "/".join(f"{value * 1e3:.2f}" for q in (50, 99, 100) if (value := lag[q]) is not None) or "-"
    turn = max((fact.get("turn_max_ns", 0) for fact in facts), default=0) / 1e6
    cpu = sum(fact.get("cpu_ns", 0) for fact in facts) / evidence.wall_ns if evidence.wall_ns else 0.0
    stolen = f"; {evidence.stolen_ns / 1e6:.0f} ms of a CPU stolen by the hypervisor" if evidence.stolen_ns else ""
    share = _percent(evidence.shared_events / evidence.events if evidence.events else 0.0, 2)
    return (
        f"lag p50/p99/max {lags} ms; {share} of events shared a read, {evidence.first_shared} first tokens did; "
        f"longest loop turn {turn:.2f} ms; send skew {evidence.send_skew_s * 1e3:.2f} ms; "
        f"late sends p99 {evidence.late_p99_s * 1e3:.2f} ms; CPU {_percent(cpu)} of a core{stolen}" + _senders(facts)
    )


def _senders(facts: Sequence[Mapping[str, Any]]) -> str:
    """By how many processes the rounds were sent, where not each by one, and what the slowest of them saw."""
    counts = sorted({fact.get("workers", 1) for fact in facts})
    each = [sender for fact in facts for sender in fact.get("senders", ())]
    if not each:
        return ""
    lag = max((sender["lag_p99_ns"] for sender in each if sender.get("lag_p99_ns") is not None), default=0) / 1e6
    died = sum("died" in sender for sender in each)
    sent = f"; sent by {' or '.join(map(str, counts))} processes, the slowest with a lag p99 of {lag:.2f} ms in a round"
    return sent + (f"; {died} of them died" if died else "")


def _roofline(utilization: Utilization) -> str:
    limits, platform = utilization.limits, utilization.platform
    least = [("TTFT", limits.ttft_s), ("TPOT", limits.tpot_s)]
    bound = [f"{name} at least {value * 1e3:.2f} ms" for name, value in least if value]
    bound += [f"Sys tok/s at most {limits.sys_tok_s:,.1f}"] if limits.sys_tok_s else []
    likely = utilization.likely.sys_tok_s
    bound += [f"{likely:,.1f} if experts are chosen evenly"] if likely and likely != limits.sys_tok_s else []
    shares = {"MFU of prefill": utilization.mfu, "MBU of decode": utilization.mbu}
    shares["of the speed of light"] = utilization.sol
    used = [f"{_percent(value, 1)} {name}" for name, value in shares.items() if value is not None]
    return "; ".join(", ".join(part) or "unknown" for part in (bound, used)) + f"; from {_facts(platform)}"


def _facts(platform: Platform) -> str:
    """The arithmetic's inputs."""
    model, device, touched = platform.model, platform.device, touched_bytes(platform.model)
    dtype = model.compute_dtype if model.compute_dtype in device.flop_s else "its fastest dtype"
    facts = [f"{platform.count} x {device.name} (each {device.peak(model.compute_dtype) / 1e12:g} TFLOP/s in {dtype}"]
    facts[0] += f", {device.bandwidth_bytes_s / 1e9:g} GB/s, {device.cache_bytes / 2**20:g} MiB of cache)"
    facts += [f"{model.active_parameters / 1e9:.2f} B active parameters"] if model.active_parameters else []
    facts += [f"{touched / 1e9:.2f} GB of weights that a token touches"] if touched else []
    facts += [f"{model.kv_bytes_per_token / 1e3:.1f} kB of K and V a token"] if model.kv_bytes_per_token else []
    facts += [f"attention to the last {model.window:,} tokens in some layers"] if model.window else []
    return ", ".join(facts) + (", with speculative decoding" if platform.passes < 1 else "")


def _telemetry(used: Usage | None, rounds: int) -> dict[str, str]:
    if used is None:
        return {"telemetry": "none of these times"}
    lines = {"energy": _energy(used, rounds)} if used.gpus else {}
    lines |= {gpu.device: _device(gpu) for gpu in used.gpus}
    return lines | ({"host": _device(used.host)} if used.host else {})


def _energy(used: Usage, rounds: int) -> str:
    if used.energy_j is None or used.power_w is None or not used.tok_per_j:
        return "not known: no round is covered by enough samples of every GPU"
    sources = sorted({gpu.source for gpu in used.gpus if gpu.source})
    how = {"counter": "by the GPUs' counters", "power": "by the integral of their power"}
    idle = [gpu.device for gpu in used.gpus if gpu.utilisation is not None and gpu.utilisation < IDLE_SHARE]
    own = f"; {', '.join(idle)} idle, and counted: telemetry.gpus names those of the engine" if idle else ""
    return (
        f"{used.energy_j:,.1f} J a round at {used.power_w:,.0f} W, {' and '.join(how[source] for source in sources)}; "
        f"{used.tok_per_j:.3g} tok/J, {1 / used.tok_per_j:.3g} J/tok; {used.rounds} of {rounds} rounds{own}"
    )


def _device(use: DeviceUse) -> str:
    parts = [f"{use.power_w:.0f} W"] if use.power_w is not None else []
    if use.core_clock_mhz is not None:
        parts.append(f"{use.core_clock_mhz:.0f} MHz (lowest {use.core_clock_mhz_min:.0f})")
    if use.temperature_c_max is not None:
        parts.append(f"{use.temperature_c_max:.0f} °C at most")
    if use.utilisation is not None:
        parts.append(f"busy {_percent(use.utilisation)}")
    if use.cpu_share is not None:
        parts.append(f"CPU {_percent(use.cpu_share)}")
    if use.memory_bytes_max is not None:
        parts.append(f"memory {use.memory_bytes_max / 2**30:.1f} GiB at most")
    if use.throttle is not None:
        parts.append(f"throttle: {', '.join(use.throttle) or 'none'}")
    return (f"{use.name}: " if use.name else "") + (", ".join(parts) or "too few samples in every round")
