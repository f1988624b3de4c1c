/* Stand-in for NVIDIA's libnvidia-ml.so.1: it answers NVML calls from a profile file instead of a driver.
 *
 * The profile is text, one `key = value` a line, `#` for comments. It is named by the environment variable
 * NVML_STANDIN_PROFILE, or lies at /etc/nvml-standin.conf. What belongs to a GPU is looked up as `gpu.0.KEY` and then
 * as `gpu.*.KEY`; a key that is absent answers NVML_ERROR_NOT_SUPPORTED, as the driver does for what a card lacks.
 * Memory figures are MiB. The function names, argument types and struct layouts are those of the public API.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int result_t;
typedef const struct device *device_t;

enum {
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9,
    ARGUMENT_VERSION_MISMATCH = 25,
};

#define MAX_ENTRIES 512
#define MAX_DEVICES 16
#define MAX_MIG 7
#define MIB (1024ULL * 1024ULL)

struct device {
    unsigned index;
    int mig; /* -1: the whole GPU */
};

static struct {
    char key[96];
    char value[160];
} entries[MAX_ENTRIES];
static int entry_count;
static int initialized;
static struct device gpus[MAX_DEVICES];
static struct device migs[MAX_DEVICES][MAX_MIG];

static const char *value_of(const char *format, ...) {
    char key[96];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(key, sizeof key, format, arguments);
    va_end(arguments);
    for (int i = 0; i < entry_count; i++)
        if (strcmp(entries[i].key, key) == 0)
            return entries[i].value;
    return NULL;
}

static const char *device_value(device_t device, const char *key) {
    if (device->mig >= 0)
        return value_of("gpu.%u.mig.%d.%s", device->index, device->mig, key);
    const char *own = value_of("gpu.%u.%s", device->index, key);
    return own ? own : value_of("gpu.*.%s", key);
}

static char *trimmed(char *text) {
    while (*text == ' ' || *text == '\t')
        text++;
    size_t length = strlen(text);
    while (length > 0 && strchr(" \t\r\n", text[length - 1]))
        text[--length] = '\0';
    return text;
}

static result_t load_profile(void) {
    const char *path = getenv("NVML_STANDIN_PROFILE");
    FILE *file = fopen(path ? path : "/etc/nvml-standin.conf", "r");
    if (!file)
        return DRIVER_NOT_LOADED;
    char line[300];
    entry_count = 0;
    while (fgets(line, sizeof line, file) && entry_count < MAX_ENTRIES) {
        char *text = trimmed(line);
        char *equals = strchr(text, '=');
        if (*text == '#' || !equals)
            continue;
        *equals = '\0';
        snprintf(entries[entry_count].key, sizeof entries[0].key, "%s", trimmed(text));
        snprintf(entries[entry_count].value, sizeof entries[0].value, "%s", trimmed(equals + 1));
        entry_count++;
    }
    fclose(file);
    return SUCCESS;
}

static unsigned device_count(void) {
    const char *count = value_of("device_count");
    unsigned number = count ? (unsigned)atoi(count) : 0;
    return number < MAX_DEVICES ? number : MAX_DEVICES;
}

static result_t check(device_t device) {
    if (!initialized)
        return UNINITIALIZED;
    return device ? SUCCESS : INVALID_ARGUMENT;
}

static result_t copy_text(const char *value, char *buffer, unsigned length) {
    if (!value)
        return NOT_SUPPORTED;
    if (strlen(value) >= length)
        return INSUFFICIENT_SIZE;
    strcpy(buffer, value);
    return SUCCESS;
}

static result_t device_text(device_t device, const char *key, char *buffer, unsigned length) {
    result_t result = check(device);
    return result ? result : copy_text(device_value(device, key), buffer, length);
}

static result_t device_number(device_t device, const char *key, unsigned *number) {
    result_t result = check(device);
    if (result)
        return result;
    const char *value = device_value(device, key);
    if (!value)
        return NOT_SUPPORTED;
    *number = (unsigned)strtoul(value, NULL, 0);
    return SUCCESS;
}

static result_t device_milliwatts(device_t device, const char *key, unsigned *milliwatts) {
    result_t result = check(device);
    if (result)
        return result;
    const char *value = device_value(device, key);
    if (!value)
        return NOT_SUPPORTED;
    *milliwatts = (unsigned)(atof(value) * 1000.0 + 0.5);
    return SUCCESS;
}

static result_t device_modes(device_t device, const char *key, unsigned *current, unsigned *pending) {
    result_t result = device_number(device, key, current);
    if (!result)
        *pending = *current;
    return result;
}

/* --- library and system --- */

result_t nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    result_t result = load_profile();
    if (result)
        return result;
    const char *wanted = value_of("init_result");
    if (wanted && atoi(wanted) != SUCCESS)
        return atoi(wanted);
    for (unsigned i = 0; i < MAX_DEVICES; i++) {
        gpus[i] = (struct device){i, -1};
        for (int k = 0; k < MAX_MIG; k++)
            migs[i][k] = (struct device){i, k};
    }
    initialized++;
    return SUCCESS;
}

result_t nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
result_t nvmlInit(void) { return nvmlInitWithFlags(0); }

result_t nvmlShutdown(void) {
    if (!initialized)
        return UNINITIALIZED;
    initialized--;
    return SUCCESS;
}

const char *nvmlErrorString(result_t result) {
    switch (result) {
    case SUCCESS: return "The operation was successful";
    case UNINITIALIZED: return "Uninitialized";
    case INVALID_ARGUMENT: return "Invalid Argument";
    case NOT_SUPPORTED: return "Not Supported";
    case 4: return "Insufficient Permissions";
    case NOT_FOUND: return "Not Found";
    case INSUFFICIENT_SIZE: return "Insufficient Size";
    case DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case 12: return "NVML Shared Library Not Found";
    case 13: return "Function Not Found";
    case 15: return "GPU is lost";
    case 18: return "Driver/library version mismatch";
    case ARGUMENT_VERSION_MISMATCH: return "Argument version mismatch";
    default: return "Unknown Error";
    }
}

result_t nvmlSystemGetDriverVersion(char *version, unsigned length) {
    return initialized ? copy_text(value_of("driver_version"), version, length) : UNINITIALIZED;
}

result_t nvmlSystemGetNVMLVersion(char *version, unsigned length) {
    return initialized ? copy_text(value_of("nvml_version"), version, length) : UNINITIALIZED;
}

result_t nvmlSystemGetCudaDriverVersion_v2(int *version) {
    const char *value = value_of("cuda_driver_version");
    if (!value)
        return NOT_SUPPORTED;
    *version = atoi(value);
    return SUCCESS;
}

result_t nvmlSystemGetCudaDriverVersion(int *version) { return nvmlSystemGetCudaDriverVersion_v2(version); }

/* --- finding devices --- */

result_t nvmlDeviceGetCount_v2(unsigned *count) {
    if (!initialized)
        return UNINITIALIZED;
    *count = device_count();
    return SUCCESS;
}

result_t nvmlDeviceGetCount(unsigned *count) { return nvmlDeviceGetCount_v2(count); }

result_t nvmlDeviceGetHandleByIndex_v2(unsigned index, device_t *device) {
    if (!initialized)
        return UNINITIALIZED;
    if (index >= device_count())
        return INVALID_ARGUMENT;
    *device = &gpus[index];
    return SUCCESS;
}

result_t nvmlDeviceGetHandleByIndex(unsigned index, device_t *device) {
    return nvmlDeviceGetHandleByIndex_v2(index, device);
}

static result_t device_by(const char *key, const char *wanted, device_t *device) {
    if (!initialized)
        return UNINITIALIZED;
    for (unsigned i = 0; i < device_count(); i++) {
        const char *value = device_value(&gpus[i], key);
        if (value && strcmp(value, wanted) == 0) {
            *device = &gpus[i];
            return SUCCESS;
        }
    }
    return NOT_FOUND;
}

result_t nvmlDeviceGetHandleByUUID(const char *uuid, device_t *device) { return device_by("uuid", uuid, device); }

result_t nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, device_t *device) {
    return device_by("pci_bus_id", bus_id, device);
}

result_t nvmlDeviceGetIndex(device_t device, unsigned *index) {
    result_t result = check(device);
    if (!result)
        *index = device->index;
    return result;
}

result_t nvmlDeviceGetMinorNumber(device_t device, unsigned *minor) { return nvmlDeviceGetIndex(device, minor); }

/* --- what a device is --- */

result_t nvmlDeviceGetName(device_t device, char *name, unsigned length) {
    return device_text(device, "name", name, length);
}

result_t nvmlDeviceGetUUID(device_t device, char *uuid, unsigned length) {
    return device_text(device, "uuid", uuid, length);
}

result_t nvmlDeviceGetSerial(device_t device, char *serial, unsigned length) {
    return device_text(device, "serial", serial, length);
}

result_t nvmlDeviceGetVbiosVersion(device_t device, char *version, unsigned length) {
    return device_text(device, "vbios_version", version, length);
}

result_t nvmlDeviceGetCudaComputeCapability(device_t device, int *major, int *minor) {
    result_t result = check(device);
    if (result)
        return result;
    const char *value = device_value(device, "compute_cap");
    return value && sscanf(value, "%d.%d", major, minor) == 2 ? SUCCESS : NOT_SUPPORTED;
}

result_t nvmlDeviceGetBrand(device_t device, unsigned *brand) { return device_number(device, "brand", brand); }

result_t nvmlDeviceGetArchitecture(device_t device, unsigned *architecture) {
    return device_number(device, "architecture", architecture);
}

result_t nvmlDeviceGetNumGpuCores(device_t device, unsigned *cores) {
    return device_number(device, "cuda_cores", cores);
}

result_t nvmlDeviceGetMemoryBusWidth(device_t device, unsigned *bits) {
    return device_number(device, "memory_bus_bits", bits);
}

struct pci_info {
    char bus_id_legacy[16];
    unsigned domain, bus, device, pci_device_id, pci_subsystem_id;
    char bus_id[32];
};

result_t nvmlDeviceGetPciInfo_v3(device_t device, struct pci_info *pci) {
    result_t result = check(device);
    if (result)
        return result;
    const char *bus_id = device_value(device, "pci_bus_id");
    memset(pci, 0, sizeof *pci);
    if (!bus_id || sscanf(bus_id, "%x:%x:%x", &pci->domain, &pci->bus, &pci->device) != 3)
        return NOT_SUPPORTED;
    snprintf(pci->bus_id, sizeof pci->bus_id, "%s", bus_id);
    snprintf(pci->bus_id_legacy, sizeof pci->bus_id_legacy, "%04X:%02X:%02X.0", pci->domain & 0xFFFF,
             pci->bus & 0xFF, pci->device & 0xFF);
    device_number(device, "pci_device_id", &pci->pci_device_id);
    device_number(device, "pci_subsystem_id", &pci->pci_subsystem_id);
    return SUCCESS;
}

result_t nvmlDeviceGetPciInfo_v2(device_t device, struct pci_info *pci) { return nvmlDeviceGetPciInfo_v3(device, pci); }
result_t nvmlDeviceGetPciInfo(device_t device, struct pci_info *pci) { return nvmlDeviceGetPciInfo_v3(device, pci); }

/* --- memory --- */

struct memory_v1 {
    unsigned long long total, free, used;
};

struct memory_v2 {
    unsigned version;
    unsigned long long total, reserved, free, used;
};

static result_t read_memory(device_t device, struct memory_v2 *memory) {
    unsigned total, reserved = 0, used = 0;
    result_t result = device_number(device, "memory_total_mib", &total);
    if (result)
        return result;
    device_number(device, "memory_reserved_mib", &reserved);
    device_number(device, "memory_used_mib", &used);
    memory->total = total * MIB;
    memory->reserved = reserved * MIB;
    memory->used = used * MIB;
    memory->free = memory->total - memory->reserved - memory->used;
    return SUCCESS;
}

/* Version 1 has no field for what the driver reserves and counts it as used. */
result_t nvmlDeviceGetMemoryInfo(device_t device, struct memory_v1 *memory) {
    struct memory_v2 full;
    result_t result = read_memory(device, &full);
    if (!result)
        *memory = (struct memory_v1){full.total, full.free, full.used + full.reserved};
    return result;
}

result_t nvmlDeviceGetMemoryInfo_v2(device_t device, struct memory_v2 *memory) {
    if (memory->version != (2u << 24 | (unsigned)sizeof *memory))
        return ARGUMENT_VERSION_MISMATCH;
    return read_memory(device, memory);
}

/* --- state --- */

struct utilization {
    unsigned gpu, memory;
};

result_t nvmlDeviceGetUtilizationRates(device_t device, struct utilization *rates) {
    result_t result = device_number(device, "utilization_gpu_percent", &rates->gpu);
    return result ? result : device_number(device, "utilization_memory_percent", &rates->memory);
}

result_t nvmlDeviceGetTemperature(device_t device, unsigned sensor, unsigned *celsius) {
    return sensor == 0 ? device_number(device, "temperature_c", celsius) : INVALID_ARGUMENT;
}

result_t nvmlDeviceGetPersistenceMode(device_t device, unsigned *mode) {
    return device_number(device, "persistence_mode", mode);
}

result_t nvmlDeviceGetEccMode(device_t device, unsigned *current, unsigned *pending) {
    return device_modes(device, "ecc_mode", current, pending);
}

result_t nvmlDeviceGetComputeMode(device_t device, unsigned *mode) { return device_number(device, "compute_mode", mode); }

result_t nvmlDeviceGetDisplayActive(device_t device, unsigned *active) {
    return device_number(device, "display_active", active);
}

result_t nvmlDeviceGetFanSpeed(device_t device, unsigned *percent) {
    return device_number(device, "fan_speed_percent", percent);
}

result_t nvmlDeviceGetPowerUsage(device_t device, unsigned *milliwatts) {
    return device_milliwatts(device, "power_draw_w", milliwatts);
}

result_t nvmlDeviceGetPowerManagementLimit(device_t device, unsigned *milliwatts) {
    return device_milliwatts(device, "power_limit_w", milliwatts);
}

result_t nvmlDeviceGetEnforcedPowerLimit(device_t device, unsigned *milliwatts) {
    return device_milliwatts(device, "power_limit_w", milliwatts);
}

result_t nvmlDeviceGetPowerManagementDefaultLimit(device_t device, unsigned *milliwatts) {
    return device_milliwatts(device, "power_default_limit_w", milliwatts);
}

result_t nvmlDeviceGetPowerManagementLimitConstraints(device_t device, unsigned *low, unsigned *high) {
    result_t result = device_milliwatts(device, "power_min_limit_w", low);
    return result ? result : device_milliwatts(device, "power_max_limit_w", high);
}

static const char *const CLOCKS[] = {"graphics", "sm", "memory", "video"};

static result_t clock_mhz(device_t device, unsigned kind, const char *which, unsigned *mhz) {
    char key[48];
    if (kind > 3)
        return INVALID_ARGUMENT;
    snprintf(key, sizeof key, "clock_%s_%s_mhz", CLOCKS[kind], which);
    return device_number(device, key, mhz);
}

result_t nvmlDeviceGetClockInfo(device_t device, unsigned kind, unsigned *mhz) {
    return clock_mhz(device, kind, "current", mhz);
}

result_t nvmlDeviceGetMaxClockInfo(device_t device, unsigned kind, unsigned *mhz) {
    return clock_mhz(device, kind, "max", mhz);
}

/* --- links --- */

result_t nvmlDeviceGetCurrPcieLinkGeneration(device_t device, unsigned *generation) {
    return device_number(device, "pcie_gen_current", generation);
}

result_t nvmlDeviceGetMaxPcieLinkGeneration(device_t device, unsigned *generation) {
    return device_number(device, "pcie_gen_max", generation);
}

result_t nvmlDeviceGetGpuMaxPcieLinkGeneration(device_t device, unsigned *generation) {
    return device_number(device, "pcie_gen_max", generation);
}

result_t nvmlDeviceGetCurrPcieLinkWidth(device_t device, unsigned *width) {
    return device_number(device, "pcie_width_current", width);
}

result_t nvmlDeviceGetMaxPcieLinkWidth(device_t device, unsigned *width) {
    return device_number(device, "pcie_width_max", width);
}

/* `nvlinks = N`: the first N links of the device are active. */
result_t nvmlDeviceGetNvLinkState(device_t device, unsigned link, unsigned *active) {
    unsigned links;
    result_t result = device_number(device, "nvlinks", &links);
    if (!result)
        *active = link < links;
    return result;
}

static const char *between(device_t one, device_t other, const char *what) {
    unsigned low = one->index < other->index ? one->index : other->index;
    unsigned high = one->index < other->index ? other->index : one->index;
    return value_of("%s.%u.%u", what, low, high);
}

result_t nvmlDeviceGetTopologyCommonAncestor(device_t one, device_t other, unsigned *level) {
    static const struct {
        const char *name;
        unsigned level;
    } LEVELS[] = {{"PIX", 10}, {"PXB", 20}, {"PHB", 30}, {"NODE", 40}, {"SYS", 50}};
    if (check(one) || check(other))
        return INVALID_ARGUMENT;
    const char *name = between(one, other, "topology");
    for (unsigned i = 0; name && i < sizeof LEVELS / sizeof LEVELS[0]; i++)
        if (strcmp(name, LEVELS[i].name) == 0) {
            *level = LEVELS[i].level;
            return SUCCESS;
        }
    return NOT_SUPPORTED;
}

result_t nvmlDeviceGetP2PStatus(device_t one, device_t other, unsigned index, unsigned *status) {
    (void)index;
    if (check(one) || check(other))
        return INVALID_ARGUMENT;
    const char *value = between(one, other, "p2p_status");
    if (!value)
        return NOT_SUPPORTED;
    *status = (unsigned)atoi(value);
    return SUCCESS;
}

/* --- processes: `gpu.0.compute_process.0 = PID MIB NAME` --- */

struct process_info {
    unsigned pid;
    unsigned long long used_bytes;
    unsigned gpu_instance, compute_instance;
};

static result_t processes(device_t device, const char *kind, unsigned *count, struct process_info *infos) {
    result_t result = check(device);
    if (result)
        return result;
    unsigned found = 0, room = infos ? *count : 0;
    for (;; found++) {
        char key[48];
        unsigned pid;
        unsigned long long mib;
        snprintf(key, sizeof key, "%s.%u", kind, found);
        const char *value = device_value(device, key);
        if (!value || sscanf(value, "%u %llu", &pid, &mib) != 2)
            break;
        if (found < room)
            infos[found] = (struct process_info){pid, mib * MIB, 0xFFFFFFFF, 0xFFFFFFFF};
    }
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : SUCCESS;
}

result_t nvmlDeviceGetComputeRunningProcesses_v3(device_t device, unsigned *count, struct process_info *infos) {
    return processes(device, "compute_process", count, infos);
}

result_t nvmlDeviceGetComputeRunningProcesses_v2(device_t device, unsigned *count, struct process_info *infos) {
    return processes(device, "compute_process", count, infos);
}

result_t nvmlDeviceGetGraphicsRunningProcesses_v3(device_t device, unsigned *count, struct process_info *infos) {
    return processes(device, "graphics_process", count, infos);
}

result_t nvmlDeviceGetGraphicsRunningProcesses_v2(device_t device, unsigned *count, struct process_info *infos) {
    return processes(device, "graphics_process", count, infos);
}

/* The name follows the two numbers in the process's entry. */
result_t nvmlSystemGetProcessName(unsigned pid, char *name, unsigned length) {
    for (int i = 0; i < entry_count; i++) {
        unsigned entry_pid;
        int offset = 0;
        if (strstr(entries[i].key, "_process.") && sscanf(entries[i].value, "%u %*u %n", &entry_pid, &offset) == 1 &&
            entry_pid == pid && offset > 0)
            return copy_text(entries[i].value + offset, name, length);
    }
    return NOT_FOUND;
}

/* --- multi-instance GPU --- */

result_t nvmlDeviceGetMigMode(device_t device, unsigned *current, unsigned *pending) {
    return device_modes(device, "mig_mode", current, pending);
}

result_t nvmlDeviceGetMaxMigDeviceCount(device_t device, unsigned *count) {
    result_t result = check(device);
    if (!result)
        *count = device_value(device, "mig_mode") ? MAX_MIG : 0;
    return result;
}

result_t nvmlDeviceGetMigDeviceHandleByIndex(device_t device, unsigned index, device_t *mig) {
    result_t result = check(device);
    if (result)
        return result;
    if (index >= MAX_MIG || !value_of("gpu.%u.mig.%u.uuid", device->index, index))
        return NOT_FOUND;
    *mig = &migs[device->index][index];
    return SUCCESS;
}

result_t nvmlDeviceIsMigDeviceHandle(device_t device, unsigned *is_mig) {
    result_t result = check(device);
    if (!result)
        *is_mig = device->mig >= 0;
    return result;
}

result_t nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device_t mig, device_t *device) {
    result_t result = check(mig);
    if (!result)
        *device = &gpus[mig->index];
    return result;
}
