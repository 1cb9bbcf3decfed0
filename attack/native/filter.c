/*
 * The packet filter: the kernel's program, run by an interpreter, the same rule in C and the RFC
 * (reference.h) agree about every frame, in every phase.
 */
#include "classic.h"
#include "reference.h"

#include <linux/if_packet.h>

/* The filter of each phase, for the host that the input begins with. */
struct filters {
    struct sock_filter code[AUTOIP_ANSWER + 1][AUTOIP_FILTER_MAX];
    size_t count[AUTOIP_ANSWER + 1];
};

static void build(struct filters *filters, const struct trial *trial)
{
    for (enum autoip_phase phase = AUTOIP_SILENT; phase <= AUTOIP_ANSWER; phase++) {
        int count = autoip_filter_build(filters->code[phase], AUTOIP_FILTER_MAX, trial->mac,
                                        trial->address, phase);

        MUST(count > 0);
        filters->count[phase] = (size_t)count;
    }
}

static void try_frame(const struct filters *filters, const struct trial *trial,
                      const struct about *about)
{
    for (enum autoip_phase phase = AUTOIP_SILENT; phase <= AUTOIP_ANSWER; phase++) {
        enum autoip_verdict wanted =
            reference_verdict(trial->frame, trial->length, trial->mac, trial->address, phase);
        uint32_t passes = classic_run(filters->code[phase], filters->count[phase], about,
                                      trial->frame, trial->length);

        MUST(autoip_filter_accepts(trial->frame, trial->length, trial->mac, trial->address,
                                   phase) == wanted);
        if (wanted == AUTOIP_NOTHING || about->tagged != 0 ||
            about->packet_type > PACKET_MULTICAST)
            MUST(passes == 0);
        else
            MUST(passes == AUTOIP_FRAME_LEN);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, size};
    struct filters filters;
    struct trial trial;

    take(&input, trial.mac, sizeof trial.mac);
    trial.address = take_word(&input);
    build(&filters, &trial);
    while (input.left > 0) {
        uint8_t flags = take_byte(&input);
        struct about about = {flags % 8u, flags / 8u % 4u == 0};

        take_frame(&input, &trial);
        try_frame(&filters, &trial, &about);
    }
    return 0;
}
