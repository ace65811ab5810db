/* What was counted, as lines of JSON: one for each section, which ends where the host
 * waits for a stream, and one for all. RECORDING_DRIVER_REPORT names the file, else it
 * is standard error; RECORDING_DRIVER_LOG one for every single call. */
#include "recorder.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TOLD_FAULTS = 20, SLOTS = 4096, TOLD_SECTIONS = 1000 };

static const char *const kinds[KINDS] = {
    "launches", "products", "copies_to_card", "copies_to_card_pinned", "copies_to_host", "copies_on_card",
    "fills", "allocations", "frees", "waits", "choices",
};

typedef struct {
    char name[120];
    enum Kind kind;
    uint64_t count, in_all;
} Entry;

typedef struct {
    uint64_t count[KINDS], bytes[KINDS];
} Sums;

static Entry entries[SLOTS]; /* by the hash of their name */
static Sums section, whole;
static unsigned sections;
static uint64_t faults;
static FILE *report, *log_file;
static bool opened;

uint64_t setting(const char *name, uint64_t otherwise) {
    const char *text = getenv(name);
    return text && *text ? strtoull(text, NULL, 10) : otherwise;
}

static FILE *file_of(const char *name, FILE *otherwise) {
    const char *path = getenv(name);
    FILE *file = path && *path ? fopen(path, "w") : otherwise;
    if (!file && path) perror(path);
    return file;
}

static void open_files(void) {
    if (opened) return;
    opened = true;
    report = file_of("RECORDING_DRIVER_REPORT", stderr);
    log_file = file_of("RECORDING_DRIVER_LOG", NULL);
}

static Entry *entry_of(enum Kind kind, const char *name) {
    uint32_t hash = (uint32_t)kind + 2166136261u;
    for (const char *at = name; *at; at++) hash = (hash ^ (unsigned char)*at) * 16777619u;
    for (unsigned i = 0; i < SLOTS; i++) {
        Entry *entry = &entries[(hash + i) % SLOTS];
        if (!entry->name[0]) {
            snprintf(entry->name, sizeof(entry->name), "%s", name);
            entry->kind = kind;
        }
        if (entry->kind == kind && !strcmp(entry->name, name)) return entry;
    }
    fprintf(stderr, "recording driver: more than %d names\n", SLOTS);
    abort();
}

void count(enum Kind kind, size_t bytes, const char *format, ...) {
    open_files();
    char name[sizeof(entries->name)];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(name, sizeof(name), format, arguments);
    va_end(arguments);
    Entry *entry = entry_of(kind, name);
    entry->count++;
    entry->in_all++;
    section.count[kind]++;
    section.bytes[kind] += bytes;
    if (log_file) fprintf(log_file, "%u\t%s\t%s\t%zu\n", sections, kinds[kind], name, bytes);
}

void fault(const char *kind, const char *format, ...) {
    open_files();
    char text[400];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    if (report && faults < 10 * TOLD_FAULTS)
        fprintf(report, "{\"fault\":\"%s\",\"section\":%u,\"text\":\"%s\"}\n", kind, sections, text);
    if (faults++ < TOLD_FAULTS) fprintf(stderr, "recording driver: %s: %s\n", kind, text);
    if (log_file) fprintf(log_file, "%u\tfault\t%s: %s\t0\n", sections, kind, text);
}

static void write_sums(const Sums *sums) {
    for (int kind = 0; kind < KINDS; kind++)
        fprintf(report, ",\"%s\":%lu,\"%s_bytes\":%lu", kinds[kind], sums->count[kind], kinds[kind], sums->bytes[kind]);
}

static void write_names(const char *key, enum Kind kind, bool all) {
    fprintf(report, ",\"%s\":{", key);
    const char *comma = "";
    for (unsigned i = 0; i < SLOTS; i++) {
        uint64_t number = all ? entries[i].in_all : entries[i].count;
        if (!number || entries[i].kind != kind) continue;
        fprintf(report, "%s\"%s\":%lu", comma, entries[i].name, number);
        comma = ",";
    }
    fprintf(report, "}");
}

static void write_all_names(bool all) {
    write_names("by_kernel", LAUNCH, all);
    write_names("by_product", PRODUCT, all);
    write_names("by_copy", HTOD, all);
    write_names("by_wait", WAIT, all);
}

void end_section(const char *why) {
    open_files();
    if (report && sections < TOLD_SECTIONS) {
        fprintf(report, "{\"section\":%u,\"ended_by\":\"%s\",\"live_bytes\":%zu,\"peak_bytes\":%zu", sections, why,
                live_bytes(), section_peak_bytes());
        write_sums(&section);
        write_all_names(false);
        fprintf(report, "}\n");
    }
    for (int kind = 0; kind < KINDS; kind++) {
        whole.count[kind] += section.count[kind];
        whole.bytes[kind] += section.bytes[kind];
    }
    memset(&section, 0, sizeof(section));
    for (unsigned i = 0; i < SLOTS; i++) entries[i].count = 0;
    start_section_peak();
    sections++;
}

static __attribute__((destructor)) void end_report(void) {
    if (!opened) return;
    enter();
    end_section("the end");
    if (report) {
        fprintf(report, "{\"all\":%u,\"faults\":%lu,\"live_bytes\":%zu,\"peak_bytes\":%zu", sections, faults,
                live_bytes(), peak_bytes());
        write_sums(&whole);
        write_all_names(true);
        fprintf(report, "}\n");
        fflush(report);
    }
    if (log_file) fflush(log_file);
    leave(NULL);
}
