// What a step leaves for the host to read later: one slot of numbers per step, so that nobody waits for it.

#include "common.cuh"

// One thread. `aux_loss` (and how many entries it has) and `smallest` may be null. `starts` [d_sae + 1] of the codes by latent; `ends` [groups] the latents after each prefix.
// slot: [norm, steps not applied so far, aux loss, smallest kept code, entries below each prefix's end ...].
KERNEL record(const f64* norm, const u32* bad, const f64* aux_loss, const u32* aux_entries, const f32* smallest, const u32* starts, const u32* ends, u32 groups,
              f64* slot) {
    if (threadIdx.x != 0 || blockIdx.x != 0) {
        return;
    }
    slot[0] = *norm;
    slot[1] = static_cast<f64>(*bad);
    // Dead latents that nothing makes positive leave no loss.
    slot[2] = aux_loss && *aux_entries ? *aux_loss : -1.0;
    slot[3] = smallest ? static_cast<f64>(*smallest) : -1.0;
    for (u32 g = 0; g < groups; g++) {
        slot[4 + g] = static_cast<f64>(starts[ends[g]]);
    }
}
REGISTER(record)

// A value a little below the smallest that the last batch kept; 0 where it kept none.
KERNEL batch_guess(const f32* smallest, f32* guess) {
    if (threadIdx.x == 0 && blockIdx.x == 0) {
        f32 s = *smallest;
        *guess = s > 0.0f && s < __uint_as_float(0x7f800000u) ? 0.9f * s : 0.0f;
    }
}
REGISTER(batch_guess)
