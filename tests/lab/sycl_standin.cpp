/* Stand-in for the SYCL backend of the Ollama build in the wheel bigdl-core-cpp: it reports zero devices.
 *
 * That build wants an Intel GPU and a gigabyte of runtime libraries at start. With this library in the place of
 * libollama-ggml-sycl.so the same server runs on the CPU. The exported names are the ones that the server's other
 * libraries import; the struct has the layout of ggml's backend registration, API version 1.
 */
#include <cstddef>

extern "C" {

struct backend_registration {
    int api_version;
    const char *(*name)(void *);
    size_t (*device_count)(void *);
    void *(*device)(void *, size_t);
    void *(*proc_address)(void *, const char *);
    void *context;
};

static const char *name(void *) { return "SYCL"; }
static size_t device_count(void *) { return 0; }
static void *device(void *, size_t) { return nullptr; }
static void *proc_address(void *, const char *) { return nullptr; }

void *ggml_backend_sycl_reg() {
    static backend_registration registration = {1, name, device_count, device, proc_address, nullptr};
    return &registration;
}

const char *ggml_backend_sycl_get_device_name() { return ""; }

void *ggml_backend_sycl_init(int) { return nullptr; }
}

void ggml_format_convert_to_xpu(const void *, void *, unsigned long, int) {}
