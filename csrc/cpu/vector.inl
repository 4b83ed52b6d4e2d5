// Vectors of one instruction set: kLanes float32, and the elements in memory that they are loaded
// from, float or BFloat16. The including file has set the target and defines kLanes; with AVX
// INCEPTION_FUSED_REGISTER, the asm constraint of a vector register; and
// INCEPTION_FUSED_AVX512_BF16 or INCEPTION_FUSED_AVX512_VNNI where BFloat16 or int8 has
// instructions. (After its pragma gcc 12 has no __AVX2__ and the like.)
//
// Nothing in this and the other bodies may instantiate a std template, or its weak symbol could
// carry wide instructions into the rest of the process.

inline constexpr int kVectors = kGroup / kLanes;  // of a group of columns

typedef float Vector __attribute__((vector_size(kLanes * sizeof(float))));
typedef float UnalignedVector
    __attribute__((vector_size(kLanes * sizeof(float)), aligned(4), may_alias));
typedef uint32_t Words __attribute__((vector_size(kLanes * sizeof(uint32_t))));
typedef uint16_t Halves __attribute__((vector_size(kLanes * sizeof(uint16_t))));
typedef uint16_t UnalignedHalves
    __attribute__((vector_size(kLanes * sizeof(uint16_t)), aligned(2), may_alias));
typedef uint32_t UnalignedWord __attribute__((aligned(1), may_alias));

static inline Vector load(const float* p) { return *reinterpret_cast<const UnalignedVector*>(p); }
static inline Vector load(const BFloat16* p) {
  const Halves halves = *reinterpret_cast<const UnalignedHalves*>(p);
  return reinterpret_cast<Vector>(__builtin_convertvector(halves, Words) << 16);
}

static inline void store(float* p, Vector v) { *reinterpret_cast<UnalignedVector*>(p) = v; }

// Rounds to nearest, ties to even; NaN stays NaN.
static inline void store(BFloat16* p, Vector v) {
#if defined(INCEPTION_FUSED_AVX512_BF16)
  Halves halves;
  asm("vcvtneps2bf16 %1, %0" : "=v"(halves) : "v"(v));
#else
  const Words bits = reinterpret_cast<Words>(v);
  const Words nearest = bits + 0x7fff + (bits >> 16 & 1), quiet = bits | 0x400000;
  const Halves halves = __builtin_convertvector((v == v ? nearest : quiet) >> 16, Halves);
#endif
  *reinterpret_cast<UnalignedHalves*>(p) = halves;
}

// The first `count` lanes at p, zeros behind them.
template <typename T>
static inline Vector load_some(const T* p, int64_t count) {
  if (count >= kLanes) return load(p);
  alignas(64) T lanes[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = p[i];
  return load(lanes);
}

template <typename T>
static inline void store_some(T* p, Vector v, int64_t count) {
  if (count >= kLanes) return store(p, v);
  alignas(64) T lanes[kLanes];
  store(lanes, v);
  for (int64_t i = 0; i < count; ++i) p[i] = lanes[i];
}

static inline Vector splat(float value) { return value - Vector{}; }
static inline Vector relu(Vector v) { return v < 0.0f ? Vector{} : v; }  // NaN stays NaN

// An operand of multiply_add: per lane one number, or two of BFloat16, the first in the lower half,
// or four of int8, the first in the lowest byte. The sums of int8 are int32.
template <typename T>
struct OperandOf {
  typedef Words Type;
  typedef Vector Sum;
};
template <>
struct OperandOf<float> {
  typedef Vector Type;
  typedef Vector Sum;
};
template <>
struct OperandOf<uint8_t> {
  typedef Words Type;
  typedef Words Sum;
};

// One number, or two or four, in all lanes.
static inline Vector broadcast(const float* p) { return splat(*p); }
static inline Words broadcast(const BFloat16* p) {
  return *reinterpret_cast<const UnalignedWord*>(p) - Words{};
}

static inline Words broadcast(const uint8_t* p) {
  return *reinterpret_cast<const UnalignedWord*>(p) - Words{};
}

// The number before the end of an odd depth: nothing behind it is read, and zero stands there.
static inline Words broadcast_last(const BFloat16* p) { return uint32_t{p->bits} - Words{}; }

static inline void multiply_add(Vector& sum, Vector a, Vector b) { sum += a * b; }

static inline void multiply_add(Vector& sum, Words a, Words b) {
#if defined(INCEPTION_FUSED_AVX512_BF16)
  asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
#else
  constexpr uint32_t kUpper = 0xffff0000;
  sum += reinterpret_cast<Vector>(a << 16) * reinterpret_cast<Vector>(b << 16);
  sum += reinterpret_cast<Vector>(a & kUpper) * reinterpret_cast<Vector>(b & kUpper);
#endif
}

// a: unsigned bytes, b: signed ones. Exact, modulo 2^32.
static inline void multiply_add(Words& sum, Words a, Words b) {
#if defined(INCEPTION_FUSED_AVX512_VNNI)
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
#elif defined(INCEPTION_FUSED_REGISTER)
  // Bytes 0 and 2, then 1 and 3, as pairs of int16.
  typedef int16_t Pairs __attribute__((vector_size(sizeof(Words))));
  constexpr uint32_t kEven = 0x00ff00ff;
  const Pairs b_odd = reinterpret_cast<Pairs>(b) >> 8,
              b_even = (reinterpret_cast<Pairs>(b) << 8) >> 8;
  Words even = a & kEven, odd = (a >> 8) & kEven;
  asm("vpmaddwd %1, %0, %0"
      : "+" INCEPTION_FUSED_REGISTER(even)
      : INCEPTION_FUSED_REGISTER(b_even));
  asm("vpmaddwd %1, %0, %0" : "+" INCEPTION_FUSED_REGISTER(odd) : INCEPTION_FUSED_REGISTER(b_odd));
  sum += even + odd;
#else
  typedef int32_t Signed __attribute__((vector_size(sizeof(Words))));
  for (int byte = 0; byte < 4; ++byte) {
    const Signed weight = reinterpret_cast<Signed>(b << (24 - 8 * byte)) >> 24;
    sum += (a >> (8 * byte) & 0xff) * reinterpret_cast<Words>(weight);
  }
#endif
}
