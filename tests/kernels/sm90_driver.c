// Stands for libcuda while a kernel is compiled: it says that there is one Hopper GPU, and can
// load and run nothing. Only what Mosaic GPU asks before it compiles is answered.
#include <stdint.h>
#include <stdio.h>

enum { kSharedPerBlock = 8, kWarp = 10, kProcessors = 16, kMajor = 75, kMinor = 76,
       kSharedOptIn = 97 };

int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int* version) { *version = 13000; return 0; }
int cuDeviceGetCount(int* count) { *count = 1; return 0; }
int cuDeviceGet(int* device, int ordinal) { *device = 0; return 0; }
int cuCtxGetDevice(int* device) { *device = 0; return 0; }
int cuDeviceGetName(char* name, int length, int device) {
  snprintf(name, length, "Hopper");
  return 0;
}
int cuDeviceGetAttribute(int* value, int attribute, int device) {
  switch (attribute) {
    case kMajor: *value = 9; break;
    case kMinor: *value = 0; break;
    case kSharedOptIn: *value = 232448; break;
    case kSharedPerBlock: *value = 49152; break;
    case kProcessors: *value = 132; break;
    case kWarp: *value = 32; break;
    default: *value = 1;
  }
  return 0;
}
int cuCtxGetCurrent(void** context) { *context = (void*)1; return 0; }
int cuCtxSetCurrent(void* context) { return 0; }
int cuDevicePrimaryCtxRetain(void** context, int device) { *context = (void*)1; return 0; }
int cuModuleLoadData(void** module, const void* image) { *module = (void*)1; return 0; }
int cuModuleGetFunction(void** function, void* module, const char* name) {
  *function = (void*)1;
  return 0;
}
int cuModuleUnload(void* module) { return 0; }
int cuFuncSetAttribute(void* function, int attribute, int value) { return 0; }
int cuFuncGetAttribute(int* value, int attribute, void* function) { *value = 0; return 0; }
int cuGetErrorString(int error, const char** text) { *text = "no GPU"; return 0; }
int cuGetErrorName(int error, const char** text) { *text = "no GPU"; return 0; }
