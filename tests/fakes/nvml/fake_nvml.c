/*
 * A stand-in for NVIDIA's libnvidia-ml.so.1, as far as falctl asks it.
 *
 * What it says stands in the file that $FAKE_NVML_STATE names, read again at every call, so that a test changes a
 * card while processes run. tests/fakes/nvml/__init__.py writes that file; one line is one thing, in the order in
 * which NVML numbers them:
 *
 *   machine driver=580.65.06 init=0 error=0 hang=0
 *   gpu uuid=GPU-... name=Fake_Card total=... used=... util=.. temp=.. power=.. limit=.. error=0 late_error=0 hang=0 mig=0 xids=0 xid=0 xid_at=0 event=8
 *   mig uuid=MIG-... name=Fake_Slice total=... used=...            (an instance of the gpu line above it)
 *
 * `init` and `error` are NVML's return codes: of its start, and of every question about the machine or that card;
 * `late_error` is that of asking for the card by its UUID, which nobody does at the start. `hang` makes a call
 * block until the file says otherwise: as with a sick driver, `machine hang` holds every call, `gpu hang` those
 * about one card, or with `hang=2` only those about its load, which nobody asks at the start. A negative number is
 * a question that the card does not support.
 *
 * `xids` is how many XIDs the card has told of, `xid` the last one, `xid_at` the instance that it concerns (0: the whole
 * card) and `event` its type; a set of events that was registered for the card gets one event when `xids` grows.
 * `xids=-1` is a card that supports no events.
 *
 * Every call works on its own copy of the state, because NVML may be called from several threads.
 */
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CARDS_MAX = 32, INSTANCES_MAX = 8, LINE_MAX_BYTES = 1024, HANG_POLL_US = 20000 };

enum { EVENT_DOUBLE_BIT_ECC = 2, EVENT_XID = 8 };

enum { HANG_ALL = 1, HANG_LOAD = 2 };

enum {
    SUCCESS = 0,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    TIMEOUT = 10,
    INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9,
    OUT_OF_MEMORY = 20,
    GPU_IS_LOST = 15,
    RESET_REQUIRED = 16,
    LIB_RM_VERSION_MISMATCH = 18,
};

typedef struct {
    char uuid[96], name[96];
    long long total, used, util, temp, power, limit;
    int error, late_error, hang, mig, xids, xid, xid_at, event;
} Device;

typedef struct {
    Device device, instances[INSTANCES_MAX];
    int instance_count;
} Card;

typedef struct {
    char driver[80];
    int init, error, hang, card_count;
    Card cards[CARDS_MAX];
} Machine;

/* nvmlEventData_t, and what stands behind an nvmlEventSet_t. */
typedef struct {
    void *device;
    unsigned long long type, data;
    unsigned gpu_instance, compute_instance;
} EventData;
typedef struct { void *handle; unsigned long long types; int seen; } EventSet;

/* nvmlMemory_t and nvmlUtilization_t. */
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned gpu, memory; } Utilization;

static void copy_text(char *to, size_t size, const char *from) {
    snprintf(to, size, "%s", from);
    for (char *c = to; *c; c++)
        if (*c == '_') *c = ' ';
}

static void set_machine(Machine *m, const char *key, const char *value) {
    if (!strcmp(key, "driver")) copy_text(m->driver, sizeof m->driver, value);
    else if (!strcmp(key, "init")) m->init = atoi(value);
    else if (!strcmp(key, "error")) m->error = atoi(value);
    else if (!strcmp(key, "hang")) m->hang = atoi(value);
}

static void set_device(Device *d, const char *key, const char *value) {
    long long number = atoll(value);
    if (!strcmp(key, "uuid")) copy_text(d->uuid, sizeof d->uuid, value);
    else if (!strcmp(key, "name")) copy_text(d->name, sizeof d->name, value);
    else if (!strcmp(key, "total")) d->total = number;
    else if (!strcmp(key, "used")) d->used = number;
    else if (!strcmp(key, "util")) d->util = number;
    else if (!strcmp(key, "temp")) d->temp = number;
    else if (!strcmp(key, "power")) d->power = number;
    else if (!strcmp(key, "limit")) d->limit = number;
    else if (!strcmp(key, "error")) d->error = (int)number;
    else if (!strcmp(key, "late_error")) d->late_error = (int)number;
    else if (!strcmp(key, "hang")) d->hang = (int)number;
    else if (!strcmp(key, "mig")) d->mig = (int)number;
    else if (!strcmp(key, "xids")) d->xids = (int)number;
    else if (!strcmp(key, "xid")) d->xid = (int)number;
    else if (!strcmp(key, "xid_at")) d->xid_at = (int)number;
    else if (!strcmp(key, "event")) d->event = (int)number;
}

/* The device that a line's first word begins; NULL: the line is about the machine, or there is no room. */
static Device *begin_device(Machine *m, const char *kind) {
    if (!strcmp(kind, "gpu") && m->card_count < CARDS_MAX) return &m->cards[m->card_count++].device;
    if (!strcmp(kind, "mig") && m->card_count > 0) {
        Card *card = &m->cards[m->card_count - 1];
        if (card->instance_count < INSTANCES_MAX) return &card->instances[card->instance_count++];
    }
    return NULL;
}

static void read_line(Machine *m, char *line) {
    char *rest = NULL, *kind = strtok_r(line, " \n", &rest);
    if (!kind) return;
    Device *device = begin_device(m, kind);
    for (char *word; (word = strtok_r(NULL, " \n", &rest));) {
        char *value = strchr(word, '=');
        if (!value) continue;
        *value++ = 0;
        if (device) set_device(device, word, value);
        else set_machine(m, word, value);
    }
}

static void read_state(Machine *m) {
    const char *path = getenv("FAKE_NVML_STATE");
    char line[LINE_MAX_BYTES];
    FILE *file = path ? fopen(path, "r") : NULL;
    memset(m, 0, sizeof *m);
    if (!file) {
        m->init = DRIVER_NOT_LOADED;
        return;
    }
    while (fgets(line, sizeof line, file)) read_line(m, line);
    fclose(file);
}

static void look(Machine *m) {
    for (read_state(m); m->hang; read_state(m)) usleep(HANG_POLL_US);
}

/* Handles: the number of the card from 1, times 256, plus the number of the instance from 1. */
static void *handle_of(int card, int instance) {
    return (void *)(size_t)((card + 1) * 256 + instance + 1);
}

/* Find the device of a handle, for a question that a card with this `hang` keeps waiting. */
static int find_for(Machine *m, void *handle, Device **found, int hang) {
    int card = (int)((size_t)handle / 256) - 1, instance = (int)((size_t)handle % 256) - 1;
    for (look(m);; usleep(HANG_POLL_US), look(m)) {
        if (card < 0 || card >= m->card_count) return INVALID_ARGUMENT;
        Card *at = &m->cards[card];
        if (at->device.hang == HANG_ALL || at->device.hang == hang) continue;
        if (at->device.error) return at->device.error;
        if (instance >= at->instance_count) return INVALID_ARGUMENT;
        *found = instance < 0 ? &at->device : &at->instances[instance];
        return SUCCESS;
    }
}

static int find(Machine *m, void *handle, Device **found) {
    return find_for(m, handle, found, HANG_ALL);
}

static int number(void *handle, size_t field, unsigned *out) {
    Machine m;
    Device *device;
    int code = find_for(&m, handle, &device, HANG_LOAD);
    if (code) return code;
    long long value = *(long long *)((char *)device + field);
    if (value < 0) return NOT_SUPPORTED;
    *out = (unsigned)value;
    return SUCCESS;
}

static int text(char *out, unsigned size, const char *from) {
    if (strlen(from) + 1 > size) return INSUFFICIENT_SIZE;
    strcpy(out, from);
    return SUCCESS;
}

/* --- the library ------------------------------------------------------------------------------------------- */

int nvmlInitWithFlags(unsigned flags) {
    Machine m;
    (void)flags;
    look(&m);
    return m.init;
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

int nvmlShutdown(void) { return SUCCESS; }

const char *nvmlErrorString(int code) {
    switch (code) {
        case DRIVER_NOT_LOADED: return "Driver Not Loaded";
        case GPU_IS_LOST: return "GPU is lost";
        case RESET_REQUIRED: return "GPU requires reset";
        case LIB_RM_VERSION_MISMATCH: return "Driver/library version mismatch";
        case NOT_FOUND: return "Not Found";
        default: return "Unknown Error";
    }
}

int nvmlSystemGetDriverVersion(char *out, unsigned size) {
    Machine m;
    look(&m);
    return m.error ? m.error : text(out, size, m.driver);
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    Machine m;
    look(&m);
    *count = (unsigned)m.card_count;
    return m.error;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    Machine m;
    Device *device;
    *handle = handle_of((int)index, -1);
    return find(&m, *handle, &device);
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) {
    Machine m;
    Device *device;
    look(&m);
    for (int card = 0; card < m.card_count; card++)
        for (int instance = -1; instance < m.cards[card].instance_count; instance++) {
            Card *at = &m.cards[card];
            if (strcmp(uuid, instance < 0 ? at->device.uuid : at->instances[instance].uuid)) continue;
            if (at->device.late_error) return at->device.late_error;
            *handle = handle_of(card, instance);
            return find(&m, *handle, &device);
        }
    return NOT_FOUND;
}

int nvmlDeviceGetUUID(void *handle, char *out, unsigned size) {
    Machine m;
    Device *device;
    int code = find(&m, handle, &device);
    return code ? code : text(out, size, device->uuid);
}

int nvmlDeviceGetName(void *handle, char *out, unsigned size) {
    Machine m;
    Device *device;
    int code = find(&m, handle, &device);
    return code ? code : text(out, size, device->name);
}

int nvmlDeviceGetMemoryInfo(void *handle, Memory *memory) {
    Machine m;
    Device *device;
    int code = find(&m, handle, &device);
    if (code) return code;
    if (device->total < 0) return NOT_SUPPORTED;
    memory->total = (unsigned long long)device->total;
    memory->used = (unsigned long long)device->used;
    memory->free = memory->total - memory->used;
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(void *handle, Utilization *rates) {
    rates->memory = 0;
    return number(handle, offsetof(Device, util), &rates->gpu);
}

int nvmlDeviceGetTemperature(void *handle, int sensor, unsigned *celsius) {
    (void)sensor;
    return number(handle, offsetof(Device, temp), celsius);
}

int nvmlDeviceGetPowerUsage(void *handle, unsigned *milliwatts) {
    return number(handle, offsetof(Device, power), milliwatts);
}

int nvmlDeviceGetEnforcedPowerLimit(void *handle, unsigned *milliwatts) {
    return number(handle, offsetof(Device, limit), milliwatts);
}

int nvmlDeviceGetMigMode(void *handle, unsigned *current, unsigned *pending) {
    Machine m;
    Device *device;
    int code = find(&m, handle, &device);
    if (code) return code;
    if (device->mig < 0) return NOT_SUPPORTED;
    *current = *pending = (unsigned)device->mig;
    return SUCCESS;
}

int nvmlDeviceGetMaxMigDeviceCount(void *handle, unsigned *count) {
    Machine m;
    Device *device;
    int code = find(&m, handle, &device);
    *count = INSTANCES_MAX;
    return code;
}

int nvmlDeviceGetMigDeviceHandleByIndex(void *handle, unsigned index, void **instance) {
    Machine m;
    Device *device;
    int code = find(&m, handle, &device), card = (int)((size_t)handle / 256) - 1;
    if (code) return code;
    if ((int)index >= m.cards[card].instance_count) return NOT_FOUND;
    *instance = handle_of(card, (int)index);
    return SUCCESS;
}

int nvmlDeviceGetGpuInstanceId(void *handle, unsigned *id) {
    Machine m;
    Device *device;
    int code = find(&m, handle, &device);
    *id = (unsigned)((size_t)handle % 256);  /* from 1; a whole card's is 0 and means nothing */
    return code ? code : *id ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetSupportedEventTypes(void *handle, unsigned long long *types) {
    Machine m;
    Device *device = NULL;
    int code = find(&m, handle, &device);
    *types = device && device->xids >= 0 ? EVENT_DOUBLE_BIT_ECC | EVENT_XID : 0;
    return code;
}

int nvmlEventSetCreate(void **set) {
    *set = calloc(1, sizeof(EventSet));
    return *set ? SUCCESS : OUT_OF_MEMORY;
}

int nvmlEventSetFree(void *set) {
    free(set);
    return SUCCESS;
}

/* One card for each set. */
int nvmlDeviceRegisterEvents(void *handle, unsigned long long types, void *set) {
    Machine m;
    Device *device;
    int code = find(&m, handle, &device);
    if (!code) *(EventSet *)set = (EventSet){handle, types, device->xids};
    return code;
}

int nvmlEventSetWait_v2(void *opaque, EventData *event, unsigned wait_ms) {
    EventSet *set = opaque;
    for (unsigned waited_us = 0;; waited_us += HANG_POLL_US, usleep(HANG_POLL_US)) {
        Machine m;
        Device *device;
        int code = find(&m, set->handle, &device);
        if (code) return code;
        if (device->xids != set->seen && device->event & set->types) {
            set->seen = device->xids;
            *event = (EventData){set->handle, device->event, device->xid, device->xid_at - !device->xid_at, -1};
            return SUCCESS;
        }
        if (waited_us / 1000 >= wait_ms) return TIMEOUT;
    }
}
