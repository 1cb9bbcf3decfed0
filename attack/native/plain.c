/*
 * Where the compiler has no libFuzzer: the same targets, given the files of the corpus and random
 * changes of them.
 *
 *   TARGET SECONDS SEED FOLDER
 */
#include "fuzz.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#define INPUT_MAX 4096u
#define FILES_MAX 4096u

int LLVMFuzzerInitialize(int *argc, char ***argv) __attribute__((weak));

struct file {
    uint8_t data[INPUT_MAX];
    size_t size;
};

static struct file files[FILES_MAX];
static size_t file_count = 1; /* the first is empty */
static uint64_t state;
static struct file input;
static const char *kept;

/* On SIGABRT, by which the target and the sanitizers end the program. */
static void keep(int number)
{
    int file = open(kept, O_WRONLY | O_CREAT | O_TRUNC, 0644);

    (void)number;
    if (file >= 0 && write(file, input.data, input.size) == (ssize_t)input.size)
        (void)close(file);
}

static uint32_t draw(uint32_t below)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 32) % below;
}

static void read_folder(const char *name)
{
    DIR *folder = opendir(name);
    struct dirent *entry;

    while (folder != NULL && file_count < FILES_MAX && (entry = readdir(folder)) != NULL) {
        char path[4096];
        FILE *stream;

        if (entry->d_name[0] == '.')
            continue;
        (void)snprintf(path, sizeof path, "%s/%s", name, entry->d_name);
        stream = fopen(path, "rb");
        if (stream == NULL)
            continue;
        files[file_count].size = fread(files[file_count].data, 1, INPUT_MAX, stream);
        file_count++;
        (void)fclose(stream);
    }
    if (folder != NULL)
        (void)closedir(folder);
}

static void change(void)
{
    static const uint8_t edges[] = {0, 1, 2, 4, 6, 8, 0x7f, 0x80, 169, 254, 255};

    for (uint32_t changes = draw(8); changes > 0; changes--) {
        size_t at = draw((uint32_t)INPUT_MAX);

        if (input.size > 0)
            at %= input.size;
        else
            input.size = 1 + draw(512);
        switch (draw(4)) {
        case 0:
            input.data[at] ^= (uint8_t)(1u << draw(8));
            break;
        case 1:
            input.data[at] = edges[draw(sizeof edges)];
            break;
        case 2:
            input.data[at] = (uint8_t)draw(256);
            break;
        default:
            input.size = 1 + draw(512);
            break;
        }
    }
}

static void try_input(void)
{
    (void)LLVMFuzzerTestOneInput(input.data, input.size);
}

int main(int argc, char **argv)
{
    time_t until;

    if (argc != 5)
        return 2;
    until = time(NULL) + atol(argv[1]);
    state = strtoull(argv[2], NULL, 10) * 2 + 1;
    kept = argv[4];
    (void)signal(SIGABRT, keep);
    read_folder(argv[3]);
    if (LLVMFuzzerInitialize != NULL)
        (void)LLVMFuzzerInitialize(&argc, &argv);
    for (size_t i = 0; i < file_count; i++) {
        input = files[i];
        try_input();
    }
    while (time(NULL) < until) {
        for (int i = 0; i < 1000; i++) {
            input = files[draw((uint32_t)file_count)];
            change();
            try_input();
        }
    }
    return 0;
}
