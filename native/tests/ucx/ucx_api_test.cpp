// Our declarations of UCX's interface against its own headers, where these are installed
// (libucx-dev).
#include "ucx/ucx_api.h"

#include <gtest/gtest.h>

#if __has_include(<ucp/api/ucp.h>)
#include <ucp/api/ucp.h>

namespace kvstore {
namespace {

#define SAME_PLACE(ours, member, theirs, their_member)                       \
    static_assert(offsetof(ours, member) == offsetof(theirs, their_member)); \
    static_assert(sizeof(ours::member) == sizeof(theirs::their_member))

static_assert(sizeof(ucp::UcsStatus) == sizeof(ucs_status_t));
static_assert(ucp::kOk == UCS_OK && ucp::kInProgress == UCS_INPROGRESS);
static_assert(ucp::kConnectionReset == UCS_ERR_CONNECTION_RESET);
static_assert(ucp::kLastError == UCS_ERR_LAST);
static_assert(ucp::kFeatureRma == UCP_FEATURE_RMA && ucp::kFeatureWakeup == UCP_FEATURE_WAKEUP);

static_assert(sizeof(ucp::Params) == sizeof(ucp_params_t));
SAME_PLACE(ucp::Params, features, ucp_params_t, features);
SAME_PLACE(ucp::Params, mt_workers_shared, ucp_params_t, mt_workers_shared);
SAME_PLACE(ucp::Params, name, ucp_params_t, name);
static_assert(ucp::Params::kFeatures == UCP_PARAM_FIELD_FEATURES);
static_assert(ucp::Params::kMtWorkersShared == UCP_PARAM_FIELD_MT_WORKERS_SHARED);
static_assert(ucp::Params::kName == UCP_PARAM_FIELD_NAME);

static_assert(sizeof(ucp::ContextAttributes) == sizeof(ucp_context_attr_t));
SAME_PLACE(ucp::ContextAttributes, memory_types, ucp_context_attr_t, memory_types);
static_assert(ucp::ContextAttributes::kMemoryTypes == UCP_ATTR_FIELD_MEMORY_TYPES);
static_assert(static_cast<int>(ucp::MemoryType::kHost) == UCS_MEMORY_TYPE_HOST);
static_assert(static_cast<int>(ucp::MemoryType::kCuda) == UCS_MEMORY_TYPE_CUDA);

static_assert(sizeof(ucp::WorkerParams) == sizeof(ucp_worker_params_t));
SAME_PLACE(ucp::WorkerParams, thread_mode, ucp_worker_params_t, thread_mode);
static_assert(ucp::WorkerParams::kThreadMode == UCP_WORKER_PARAM_FIELD_THREAD_MODE);
static_assert(static_cast<int>(ucp::ThreadMode::kSerialized) == UCS_THREAD_MODE_SERIALIZED);

static_assert(sizeof(ucp::EndpointParams) == sizeof(ucp_ep_params_t));
SAME_PLACE(ucp::EndpointParams, address, ucp_ep_params_t, address);
SAME_PLACE(ucp::EndpointParams, error_mode, ucp_ep_params_t, err_mode);
SAME_PLACE(ucp::EndpointParams, on_error, ucp_ep_params_t, err_handler.cb);
SAME_PLACE(ucp::EndpointParams, on_error_argument, ucp_ep_params_t, err_handler.arg);
static_assert(ucp::EndpointParams::kRemoteAddress == UCP_EP_PARAM_FIELD_REMOTE_ADDRESS);
static_assert(ucp::EndpointParams::kErrorMode == UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE);
static_assert(ucp::EndpointParams::kErrorHandler == UCP_EP_PARAM_FIELD_ERR_HANDLER);
static_assert(ucp::kPeerErrors == UCP_ERR_HANDLING_MODE_PEER);

static_assert(sizeof(ucp::MapParams) == sizeof(ucp_mem_map_params_t));
SAME_PLACE(ucp::MapParams, address, ucp_mem_map_params_t, address);
SAME_PLACE(ucp::MapParams, length, ucp_mem_map_params_t, length);
SAME_PLACE(ucp::MapParams, memory_type, ucp_mem_map_params_t, memory_type);
static_assert(ucp::MapParams::kAddress == UCP_MEM_MAP_PARAM_FIELD_ADDRESS);
static_assert(ucp::MapParams::kLength == UCP_MEM_MAP_PARAM_FIELD_LENGTH);
static_assert(ucp::MapParams::kMemoryType == UCP_MEM_MAP_PARAM_FIELD_MEMORY_TYPE);

static_assert(sizeof(ucp::RequestParam) == sizeof(ucp_request_param_t));
SAME_PLACE(ucp::RequestParam, mask, ucp_request_param_t, op_attr_mask);
SAME_PLACE(ucp::RequestParam, flags, ucp_request_param_t, flags);
SAME_PLACE(ucp::RequestParam, callback, ucp_request_param_t, cb);
SAME_PLACE(ucp::RequestParam, user_data, ucp_request_param_t, user_data);
SAME_PLACE(ucp::RequestParam, memory_type, ucp_request_param_t, memory_type);
SAME_PLACE(ucp::RequestParam, memory, ucp_request_param_t, memh);
static_assert(ucp::RequestParam::kCallback == UCP_OP_ATTR_FIELD_CALLBACK);
static_assert(ucp::RequestParam::kUserData == UCP_OP_ATTR_FIELD_USER_DATA);
static_assert(ucp::RequestParam::kFlags == UCP_OP_ATTR_FIELD_FLAGS);
static_assert(ucp::RequestParam::kMemoryType == UCP_OP_ATTR_FIELD_MEMORY_TYPE);
static_assert(ucp::RequestParam::kMemory == UCP_OP_ATTR_FIELD_MEMH);
static_assert(ucp::kCloseForce == UCP_EP_CLOSE_FLAG_FORCE);

TEST(UcxApi, IsThatOfTheHeaders) {
    EXPECT_GE(UCP_API_VERSION, UCP_VERSION(ucp::kApiMajor, ucp::kApiMinor));
}

}  // namespace
}  // namespace kvstore
#else
TEST(UcxApi, IsThatOfTheHeaders) { GTEST_SKIP() << "libucx-dev is not installed"; }
#endif
