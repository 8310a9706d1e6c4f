#include "kernels/acl/acl_gemm.h"

#if AO_ARM_HAVE_ACL

#include <arm_compute/core/CPP/ICPPKernel.h>
#include <arm_compute/core/Version.h>
#include <arm_compute/core/experimental/Types.h>
#include <arm_compute/runtime/IScheduler.h>
#include <arm_compute/runtime/Scheduler.h>
#include <arm_compute/runtime/Tensor.h>
#include <arm_compute/runtime/experimental/operators/CpuGEMMLowp.h>
#include <pthread.h>

#include <array>
#include <cstring>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "core/kernel.h"

namespace ao_arm {
namespace {

using arm_compute::DataType;
using arm_compute::ICPPKernel;
using arm_compute::IScheduler;
using arm_compute::ITensorPack;
using arm_compute::QuantizationInfo;
using arm_compute::Tensor;
using arm_compute::TensorInfo;
using arm_compute::TensorShape;
using arm_compute::Window;
using Operator = arm_compute::experimental::op::CpuGEMMLowp;

// What an operator's run() is to do on this thread.
enum class Step {
    kMultiply,  // bind the packed weight, then multiply
    kPack,      // pack the weight
    kName,      // nothing but tell the micro-kernel's name
};

struct ThreadState {
    Step step = Step::kMultiply;
    std::string micro_kernel;
};

ThreadState& thread_state() {
    static thread_local ThreadState state;
    return state;
}

// Runs all of ACL's work on the thread that asks for it, which is one of torch's: the layer is already cut into one
// piece for each of them. ACL's own scheduler would bring threads of its own and let only one caller in at a time.
class CallingThreadScheduler final : public IScheduler {
   public:
    void set_num_threads(unsigned int) override {}
    unsigned int num_threads() const override { return 1; }

    void schedule(ICPPKernel* kernel, const Hints&) override {
        if (should_run(*kernel)) kernel->run(kernel->window(), info(0));
    }

    void schedule_op(ICPPKernel* kernel, const Hints&, const Window& window, ITensorPack& tensors) override {
        if (should_run(*kernel)) kernel->run_op(tensors, window, info(0));
    }

    // The only workloads of this operator pack the weight. One whose thread_id lies past the last thread packs nothing
    // and still binds the memory.
    void run_workloads(std::vector<Workload>& workloads) override {
        const Step step = thread_state().step;
        if (step == Step::kPack) {
            for (size_t i = 0; i < workloads.size(); ++i) workloads[i](info(static_cast<int>(i)));
        } else if (!workloads.empty()) {
            workloads[0](info(1));
        }
    }

    void run_tagged_workloads(std::vector<Workload>& workloads, const char*) override { run_workloads(workloads); }

   private:
    bool should_run(const ICPPKernel& kernel) {
        ThreadState& state = thread_state();
        constexpr const char* kPrefix = "CpuGemmAssemblyWrapperKernel/";
        const char* name = kernel.name();
        if (state.step == Step::kName && std::strncmp(name, kPrefix, std::strlen(kPrefix)) == 0)
            state.micro_kernel = name + std::strlen(kPrefix);
        return state.step == Step::kMultiply;
    }

    arm_compute::ThreadInfo info(int thread_id) {
        arm_compute::ThreadInfo info;
        info.num_threads = 1;
        info.thread_id = thread_id;
        info.cpu_info = &cpu_info();
        return info;
    }
};

TensorInfo matrix_info(int64_t rows, int64_t columns, DataType type) {
    const TensorShape shape(static_cast<size_t>(columns), static_cast<size_t>(rows));
    return type == DataType::S32 ? TensorInfo(shape, 1, type) : TensorInfo(shape, 1, type, QuantizationInfo(1.0f, 0));
}

// ACL's operator for (m, k) x (k, columns), not re-entrant.
class Gemm {
   public:
    Gemm(int64_t m, int64_t columns, int64_t k) {
        TensorInfo lhs = matrix_info(m, k, DataType::QASYMM8_SIGNED);
        TensorInfo rhs = matrix_info(k, columns, DataType::QASYMM8_SIGNED);
        TensorInfo dst = matrix_info(m, columns, DataType::S32);
        rhs.set_are_values_constant(false);
        operator_.configure(&lhs, &rhs, nullptr, &dst, arm_compute::GEMMInfo());
        lhs_.allocator()->init(lhs);
        rhs_.allocator()->init(rhs);
        dst_.allocator()->init(dst);
        pack_.add_const_tensor(arm_compute::ACL_SRC_0, &lhs_);
        pack_.add_tensor(arm_compute::ACL_SRC_1, &rhs_);
        pack_.add_tensor(arm_compute::ACL_DST, &dst_);
        for (const auto& slot : operator_.workspace()) {
            if (slot.size == 0) continue;
            slots_.push_back({std::make_unique<Tensor>(), static_cast<int64_t>(slot.size),
                              slot.slot == arm_compute::ACL_INT_VEC + kPackedSlot});
            slots_.back().tensor->allocator()->init(TensorInfo(TensorShape(slot.size), 1, DataType::U8));
            pack_.add_tensor(slot.slot, slots_.back().tensor.get());
        }
    }

    int64_t packed_bytes() const {
        for (const Slot& slot : slots_)
            if (slot.is_packed_weight) return slot.bytes;
        return 0;
    }

    int64_t scratch_bytes() const {
        int64_t bytes = kSlotAlignment;
        for (const Slot& slot : slots_)
            if (!slot.is_packed_weight) bytes += round_up(slot.bytes, kSlotAlignment);
        return bytes;
    }

    // `weight` is (k, columns) and read in Step::kPack only; `lhs` and `dst` are touched in Step::kMultiply only.
    bool run(Step step, const int8_t* lhs, const void* weight, uint8_t* packed, int32_t* dst, uint8_t* scratch) {
        bool imported = import(lhs_, lhs) & import(rhs_, weight) & import(dst_, dst);
        auto address = reinterpret_cast<uintptr_t>(scratch);
        address = (address + kSlotAlignment - 1) / kSlotAlignment * kSlotAlignment;
        for (Slot& slot : slots_) {
            imported &= import(*slot.tensor, slot.is_packed_weight ? packed : reinterpret_cast<void*>(address));
            if (!slot.is_packed_weight) address += static_cast<uintptr_t>(round_up(slot.bytes, kSlotAlignment));
        }
        if (!imported) return false;
        thread_state().step = step;
        operator_.run(pack_);
        thread_state().step = Step::kMultiply;
        return true;
    }

   private:
    static constexpr int kPackedSlot = 2;
    static constexpr int64_t kSlotAlignment = 4096;

    struct Slot {
        std::unique_ptr<Tensor> tensor;
        int64_t bytes;
        bool is_packed_weight;
    };

    static bool import(Tensor& tensor, const void* memory) {
        return bool(tensor.allocator()->import_memory(const_cast<void*>(memory)));
    }

    Operator operator_;
    Tensor lhs_, rhs_, dst_;
    std::vector<Slot> slots_;
    ITensorPack pack_;
};

// For the steps in which activations and results are not touched.
bool run_without_multiplying(Gemm& gemm, Step step, const int8_t* weight, uint8_t* packed, uint8_t* scratch) {
    alignas(64) static uint8_t untouched[64];
    return gemm.run(step, reinterpret_cast<int8_t*>(untouched), weight, packed, reinterpret_cast<int32_t*>(untouched),
                    scratch);
}

// Memory for trying an operator out.
struct Memory {
    explicit Memory(const Gemm& gemm, int64_t columns, int64_t k)
        : weight(new int8_t[columns * k]),
          packed(new uint8_t[gemm.packed_bytes()]()),
          scratch(new uint8_t[gemm.scratch_bytes()]) {}

    bool run(Gemm& gemm, Step step) {
        return run_without_multiplying(gemm, step, weight.get(), packed.get(), scratch.get());
    }

    std::unique_ptr<int8_t[]> weight;
    std::unique_ptr<uint8_t[]> packed;
    std::unique_ptr<uint8_t[]> scratch;
};

// What is known of one shape on this CPU.
struct KnownShape {
    AclShape shape;
    std::array<int8_t, kMostRows + 1> rows_to_run = {};  // by rows wanted; 0: not known yet
};

// Shapes and idle operators, for all threads. The lock is taken across a fork: a child gets it free, whatever other
// threads of its parent were doing.
class Cache {
   public:
    static Cache& get() {
        static Cache* const cache = new Cache;  // never destroyed: threads may outlive static objects
        return *cache;
    }

    const AclShape& shape(int64_t columns, int64_t k) {
        const std::lock_guard<std::mutex> lock(mutex_);
        return known(columns, k).shape;
    }

    int64_t rows_to_run(int64_t m, int64_t columns, int64_t k) {
        const std::lock_guard<std::mutex> lock(mutex_);
        KnownShape& shape = known(columns, k);
        int8_t& rows = shape.rows_to_run[m];
        for (int64_t candidate = m; rows == 0; ++candidate) {
            if (candidate == kMostRows || name_of(candidate, columns, k) == shape.shape.micro_kernel)
                rows = static_cast<int8_t>(candidate);
        }
        return rows;
    }

    std::unique_ptr<Gemm> take(int64_t m, int64_t columns, int64_t k) {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            auto& idle = idle_[key(m, columns, k)];
            if (!idle.empty()) {
                std::unique_ptr<Gemm> gemm = std::move(idle.back());
                idle.pop_back();
                --idle_count_;
                return gemm;
            }
        }
        return std::make_unique<Gemm>(m, columns, k);
    }

    void give_back(std::unique_ptr<Gemm> gemm, int64_t m, int64_t columns, int64_t k) {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (idle_count_ >= kMostIdle) {
            idle_.clear();
            idle_count_ = 0;
        }
        idle_[key(m, columns, k)].push_back(std::move(gemm));
        ++idle_count_;
    }

   private:
    static constexpr size_t kMostIdle = 2048;  // of some 10 KiB each

    Cache() {
        arm_compute::Scheduler::set(std::make_shared<CallingThreadScheduler>());
        pthread_atfork([] { get().mutex_.lock(); }, [] { get().mutex_.unlock(); }, [] { get().mutex_.unlock(); });
    }

    static uint64_t key(int64_t m, int64_t columns, int64_t k) {
        return (static_cast<uint64_t>(k) << 24) | (static_cast<uint64_t>(columns) << 8) | static_cast<uint64_t>(m);
    }

    static std::string name_of(int64_t m, int64_t columns, int64_t k) {
        Gemm gemm(m, columns, k);
        Memory memory(gemm, columns, k);
        thread_state().micro_kernel.clear();
        memory.run(gemm, Step::kName);
        return thread_state().micro_kernel;
    }

    static bool binding_keeps_packed_bytes(int64_t columns, int64_t k) {
        Gemm gemm(kMostRows, columns, k);
        Memory memory(gemm, columns, k);
        std::memset(memory.weight.get(), 1, columns * k);
        memory.run(gemm, Step::kPack);
        const std::vector<uint8_t> before(memory.packed.get(), memory.packed.get() + gemm.packed_bytes());
        std::memset(memory.weight.get(), 2, columns * k);
        memory.run(gemm, Step::kName);
        return std::memcmp(before.data(), memory.packed.get(), before.size()) == 0;
    }

    // With the lock held.
    KnownShape& known(int64_t columns, int64_t k) {
        KnownShape& known = shapes_[key(0, columns, k)];
        if (known.shape.micro_kernel.empty()) {
            const Gemm gemm(kMostRows, columns, k);
            known.shape.packed_bytes = gemm.packed_bytes();
            known.shape.scratch_bytes = gemm.scratch_bytes();
            known.shape.binds_alone = binding_keeps_packed_bytes(columns, k);
            known.shape.micro_kernel = name_of(kMostRows, columns, k);
        }
        return known;
    }

    std::mutex mutex_;
    std::unordered_map<uint64_t, KnownShape> shapes_;
    std::unordered_map<uint64_t, std::vector<std::unique_ptr<Gemm>>> idle_;
    size_t idle_count_ = 0;
};

// ACL throws where it was built with exceptions, and memory may run out. `body` returns bool.
template <class Body>
bool no_exception(const Body& body) {
    try {
        return body();
    } catch (...) {
        thread_state().step = Step::kMultiply;
        return false;
    }
}

}  // namespace

std::string acl_version() {
    const std::string text = arm_compute::build_information();
    const size_t begin = text.find("=v");
    if (begin == std::string::npos) return "unknown";
    return text.substr(begin + 2, text.find(' ', begin) - begin - 2);
}

std::string acl_refusal(int64_t columns, int64_t k) {
    std::string refusal = "it threw an exception";
    no_exception([&] {
        const TensorInfo lhs = matrix_info(kMostRows, k, DataType::QASYMM8_SIGNED);
        const TensorInfo rhs = matrix_info(k, columns, DataType::QASYMM8_SIGNED);
        const TensorInfo dst = matrix_info(kMostRows, columns, DataType::S32);
        const arm_compute::Status status = Operator::validate(&lhs, &rhs, nullptr, &dst, arm_compute::GEMMInfo());
        refusal = bool(status) ? "" : status.error_description();
        return true;
    });
    return refusal;
}

const AclShape* acl_shape(int64_t columns, int64_t k) {
    const AclShape* shape = nullptr;
    no_exception([&] {
        shape = &Cache::get().shape(columns, k);
        return true;
    });
    return shape;
}

bool acl_pack(const int8_t* weight, int64_t columns, int64_t k, uint8_t* packed) {
    return no_exception([&] {
        Cache::get();  // brings the scheduler
        Gemm gemm(kMostRows, columns, k);
        std::vector<uint8_t> scratch(gemm.scratch_bytes());
        return run_without_multiplying(gemm, Step::kPack, weight, packed, scratch.data());
    });
}

bool acl_multiply(const int8_t* lhs, int64_t m, const uint8_t* packed, int64_t columns, int64_t k, int32_t* sums,
                  uint8_t* scratch) {
    return no_exception([&] {
        Cache& cache = Cache::get();
        const int64_t rows = cache.rows_to_run(m, columns, k);
        std::unique_ptr<Gemm> gemm = cache.take(rows, columns, k);
        uint8_t* weight = const_cast<uint8_t*>(packed);
        const bool done =
            gemm->run(Step::kMultiply, lhs, reinterpret_cast<const int8_t*>(weight), weight, sums, scratch);
        cache.give_back(std::move(gemm), rows, columns, k);
        return done;
    });
}

}  // namespace ao_arm

#endif  // AO_ARM_HAVE_ACL
