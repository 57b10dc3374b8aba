"""Prefill and decode engines: queueing and batching here, computing behind an executor.

async with PrefillEngine(TorchPrefill(model, layout), max_queue=64, clock=time.monotonic) as prefill:
    result = await prefill.run(PrefillJob(request_id="r1", prompt=prompt), emit)

async with DecodeEngine(TorchDecode(model, layout, max_batch=8), max_batch=8, clock=...) as decode:
    incoming = decode.reserve("r1", len(prompt), output_tokens)
    # incoming.destination is the transport's sink; when the transfer is done:
    incoming.all_arrived()
    async with contextlib.aclosing(decode.generate("r1", result.first_token)) as tokens:
        async for some in tokens: ...
"""
