/* A driver library for machines without a GPU: what Triton's launcher calls, which counts launches
   and does nothing else. Built as libcuda.so.1 by test_launch.py. */

static long launches;

long launch_count(void) { return launches; }

int cuLaunchKernelEx(const void *config, void *function, void **parameters, void **extra) {
  (void)config, (void)function, (void)parameters, (void)extra;
  ++launches;
  return 0;
}

#define NOTHING(name) \
  int name(void) { return 0; }

#define ANSWER(name, value) \
  int name(int *result) {   \
    *result = value;        \
    return 0;               \
  }

#define OBJECT(name)         \
  int name(void **result) {  \
    *result = (void *)&launches; \
    return 0;                \
  }

NOTHING(cuCtxSetCurrent)
NOTHING(cuCtxGetLimit)
NOTHING(cuCtxSetLimit)
NOTHING(cuFuncSetAttribute)
NOTHING(cuFuncSetCacheConfig)
NOTHING(cuGetErrorString)
NOTHING(cuModuleUnload)
NOTHING(cuPointerGetAttribute)
ANSWER(cuDeviceGet, 0)
ANSWER(cuDriverGetVersion, 13000)
ANSWER(cuCtxGetDevice, 0)
ANSWER(cuDeviceGetAttribute, 232448) /* shared memory of a block is what Triton asks for */
ANSWER(cuFuncGetAttribute, 1024)     /* threads of a block */
OBJECT(cuCtxGetCurrent)
OBJECT(cuDevicePrimaryCtxRetain)
OBJECT(cuModuleLoadData)
OBJECT(cuModuleGetFunction)
