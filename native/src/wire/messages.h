// Every message of the block protocol. kType is the frame type a struct travels under; tags are
// never reused; tag 40 is a request's time-out in milliseconds everywhere (0: none given).
#pragma once

#include "wire/frame.h"
#include "wire/messages_link.h"
#include "wire/messages_master.h"
#include "wire/messages_node.h"
#include "wire/messages_session.h"
#include "wire/messages_ucx.h"
