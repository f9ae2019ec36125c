// Metal for plain clang++ in C++14: its address spaces, which do not convert to one another, as in Metal; and the names
// from its library and from MLX's preamble of every kernel that a kernel may use or could collide with.
// `thread` is clang's address space 0, that of local variables and `this`.
#define device __attribute__((address_space(1)))
#define constant __attribute__((address_space(2)))
#define threadgroup __attribute__((address_space(3)))
#define thread
typedef unsigned short ushort;
typedef unsigned int uint, uint32_t;
typedef unsigned long ulong;
typedef unsigned long size_t;
namespace metal {
typedef float float2 __attribute__((ext_vector_type(2)));
typedef float float4 __attribute__((ext_vector_type(4)));
typedef uint uint3 __attribute__((ext_vector_type(3)));
#define OF_ONE(f) float f(float); float2 f(float2); float4 f(float4);
#define OF_TWO(f) float f(float, float); float2 f(float2, float2); float4 f(float4, float4);
OF_ONE(abs) OF_ONE(ceil) OF_ONE(cos) OF_ONE(erf) OF_ONE(exp) OF_ONE(exp2) OF_ONE(fabs) OF_ONE(floor) OF_ONE(fract)
OF_ONE(log) OF_ONE(log2) OF_ONE(normalize) OF_ONE(rint) OF_ONE(round) OF_ONE(rsqrt) OF_ONE(saturate) OF_ONE(sign)
OF_ONE(sin) OF_ONE(sqrt) OF_ONE(tan) OF_ONE(tanh) OF_ONE(trunc)
OF_TWO(atan2) OF_TWO(distance) OF_TWO(divide) OF_TWO(fmax) OF_TWO(fmin) OF_TWO(fmod) OF_TWO(max) OF_TWO(min)
OF_TWO(pow) OF_TWO(reflect) OF_TWO(step)
float fma(float, float, float); float4 fma(float4, float4, float4);
float clamp(float, float, float); float mix(float, float, float); float smoothstep(float, float, float);
float dot(float2, float2); float dot(float4, float4); float length(float2); float length(float4);
int abs(int); int max(int, int); int min(int, int); uint max(uint, uint); uint min(uint, uint);
long max(long, long); long min(long, long); int clamp(int, int, int);
template <typename T> T select(T, T, bool);
template <typename T> bool all(T); template <typename T> bool any(T);
enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2 };
constexpr mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(int(a) | int(b)); }
void threadgroup_barrier(mem_flags);
void simdgroup_barrier(mem_flags);
template <typename T> T simd_shuffle_xor(T, ushort); template <typename T> T simd_shuffle(T, ushort);
template <typename T> T simd_sum(T); template <typename T> T simd_max(T);
// from <metal_simdgroup_matrix>
struct simdgroup_float8x8 { float of_a_thread[2]; };
void simdgroup_load(simdgroup_float8x8&, const device float*, ulong);
void simdgroup_load(simdgroup_float8x8&, const threadgroup float*, ulong);
void simdgroup_store(simdgroup_float8x8, threadgroup float*, ulong);
void simdgroup_multiply_accumulate(simdgroup_float8x8&, simdgroup_float8x8&, simdgroup_float8x8&, simdgroup_float8x8&);
template <typename T, int C, int R> simdgroup_float8x8 make_filled_simdgroup_matrix(T);
template <typename T, int N> struct vec; template <typename T, size_t N> struct array;
template <typename T> struct uniform; template <typename T> struct rank; template <typename T> struct extent;
namespace fast { OF_ONE(exp) OF_ONE(log) }
namespace precise { OF_ONE(exp) OF_ONE(log) }
#undef OF_ONE
#undef OF_TWO
}  // namespace metal
using namespace metal;
constant constexpr int MAX_REDUCE_SPECIALIZED_DIMS = 4, REDUCE_N_READS = 4, REDUCE_N_WRITES = 4, SOFTMAX_N_READS = 4;
constant constexpr int RMS_N_READS = 4, RMS_LOOPED_LIMIT = 4096;
template <typename U> struct WorkPerThread; template <typename U> struct Limits; template <typename T> struct complex_t;
template <typename T, typename U> inline T ceildiv(T n, U m) { return (n + m - 1) / m; }
template <typename U, typename T> inline U cast_to(T value) { return static_cast<U>(value); }
float log1p(float);
