/*
 * The part of libnghttp2's interface that http2.c uses. Nothing of libnghttp2 is needed to build.
 *
 * All of it belongs to the ABI of libnghttp2.so.14. A test compares this file with the installed <nghttp2/nghttp2.h>.
 */

#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#ifndef NGHTTP2_H /* <nghttp2/nghttp2.h> */

typedef struct nghttp2_session nghttp2_session;
typedef struct nghttp2_session_callbacks nghttp2_session_callbacks;
typedef struct nghttp2_option nghttp2_option;

typedef struct {
    uint8_t *name;
    uint8_t *value;
    size_t namelen;
    size_t valuelen;
    uint8_t flags;
} nghttp2_nv;

typedef struct {
    size_t length;
    int32_t stream_id;
    uint8_t type;
    uint8_t flags;
    uint8_t reserved;
} nghttp2_frame_hd;

typedef struct {
    nghttp2_frame_hd hd;
    int32_t last_stream_id;
    uint32_t error_code;
} nghttp2_goaway; /* the library's has more members */

typedef union {
    nghttp2_frame_hd hd;
    nghttp2_goaway goaway;
} nghttp2_frame; /* likewise; the library makes all objects of this type */

typedef union {
    int fd;
    void *ptr;
} nghttp2_data_source;

typedef ssize_t (*nghttp2_data_source_read_callback)(nghttp2_session *session, int32_t stream_id, uint8_t *buf,
                                                     size_t length, uint32_t *data_flags, nghttp2_data_source *source,
                                                     void *user_data);

typedef struct {
    nghttp2_data_source source;
    nghttp2_data_source_read_callback read_callback;
} nghttp2_data_provider;

typedef struct nghttp2_priority_spec nghttp2_priority_spec;

typedef struct {
    int32_t settings_id;
    uint32_t value;
} nghttp2_settings_entry;

typedef struct nghttp2_extpri {
    uint32_t urgency;
    int inc;
} nghttp2_extpri;

typedef int (*nghttp2_on_frame_recv_callback)(nghttp2_session *session, const nghttp2_frame *frame, void *user_data);
typedef int (*nghttp2_on_frame_send_callback)(nghttp2_session *session, const nghttp2_frame *frame, void *user_data);
typedef int (*nghttp2_on_begin_headers_callback)(nghttp2_session *session, const nghttp2_frame *frame,
                                                 void *user_data);
typedef int (*nghttp2_on_invalid_frame_recv_callback)(nghttp2_session *session, const nghttp2_frame *frame,
                                                      int lib_error_code, void *user_data);
typedef int (*nghttp2_on_header_callback)(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name,
                                          size_t namelen, const uint8_t *value, size_t valuelen, uint8_t flags,
                                          void *user_data);
typedef int (*nghttp2_on_data_chunk_recv_callback)(nghttp2_session *session, uint8_t flags, int32_t stream_id,
                                                   const uint8_t *data, size_t len, void *user_data);
typedef int (*nghttp2_on_stream_close_callback)(nghttp2_session *session, int32_t stream_id, uint32_t error_code,
                                                void *user_data);

#define NGHTTP2_DATA 0
#define NGHTTP2_HEADERS 1
#define NGHTTP2_SETTINGS 4
#define NGHTTP2_GOAWAY 7
#define NGHTTP2_FLAG_NONE 0
#define NGHTTP2_FLAG_ACK 1
#define NGHTTP2_FLAG_END_STREAM 1
#define NGHTTP2_SETTINGS_ENABLE_PUSH 2
#define NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS 3
#define NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE 4
#define NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE 6
#define NGHTTP2_SETTINGS_NO_RFC7540_PRIORITIES 9
#define NGHTTP2_NO_ERROR 0
#define NGHTTP2_NV_FLAG_NONE 0
#define NGHTTP2_NV_FLAG_NO_INDEX 1
#define NGHTTP2_DATA_FLAG_EOF 1
#define NGHTTP2_DATA_FLAG_NO_END_STREAM 2
#define NGHTTP2_ERR_DEFERRED (-508)
#define NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE (-521)
#define NGHTTP2_ERR_CALLBACK_FAILURE (-902)

#endif

/* The functions, as F(RESULT, NAME without nghttp2_, PARAMETERS). Every libnghttp2.so.14 since 1.30 has these. */
#define NGHTTP2_REQUIRED(F)                                                                                            \
    F(int, session_callbacks_new, nghttp2_session_callbacks **)                                                        \
    F(void, session_callbacks_del, nghttp2_session_callbacks *)                                                        \
    F(void, session_callbacks_set_on_begin_headers_callback, nghttp2_session_callbacks *,                              \
      nghttp2_on_begin_headers_callback)                                                                               \
    F(void, session_callbacks_set_on_header_callback, nghttp2_session_callbacks *, nghttp2_on_header_callback)         \
    F(void, session_callbacks_set_on_frame_recv_callback, nghttp2_session_callbacks *,                                 \
      nghttp2_on_frame_recv_callback)                                                                                  \
    F(void, session_callbacks_set_on_frame_send_callback, nghttp2_session_callbacks *,                                 \
      nghttp2_on_frame_send_callback)                                                                                  \
    F(void, session_callbacks_set_on_invalid_frame_recv_callback, nghttp2_session_callbacks *,                         \
      nghttp2_on_invalid_frame_recv_callback)                                                                          \
    F(void, session_callbacks_set_on_data_chunk_recv_callback, nghttp2_session_callbacks *,                            \
      nghttp2_on_data_chunk_recv_callback)                                                                             \
    F(void, session_callbacks_set_on_stream_close_callback, nghttp2_session_callbacks *,                               \
      nghttp2_on_stream_close_callback)                                                                                \
    F(int, option_new, nghttp2_option **)                                                                              \
    F(void, option_del, nghttp2_option *)                                                                              \
    F(void, option_set_no_auto_window_update, nghttp2_option *, int)                                                   \
    F(void, option_set_no_closed_streams, nghttp2_option *, int)                                                       \
    F(int, session_server_new2, nghttp2_session **, const nghttp2_session_callbacks *, void *, const nghttp2_option *) \
    F(int, session_client_new2, nghttp2_session **, const nghttp2_session_callbacks *, void *, const nghttp2_option *) \
    F(void, session_del, nghttp2_session *)                                                                            \
    F(ssize_t, session_mem_recv, nghttp2_session *, const uint8_t *, size_t)                                           \
    F(ssize_t, session_mem_send, nghttp2_session *, const uint8_t **)                                                  \
    F(int, session_want_read, nghttp2_session *)                                                                       \
    F(int, session_want_write, nghttp2_session *)                                                                      \
    F(int, session_consume_connection, nghttp2_session *, size_t)                                                      \
    F(int, session_set_local_window_size, nghttp2_session *, uint8_t, int32_t, int32_t)                                \
    F(int, session_set_stream_user_data, nghttp2_session *, int32_t, void *)                                           \
    F(void *, session_get_stream_user_data, nghttp2_session *, int32_t)                                                \
    F(int, session_get_stream_remote_close, nghttp2_session *, int32_t)                                                \
    F(int, session_resume_data, nghttp2_session *, int32_t)                                                            \
    F(int, session_terminate_session, nghttp2_session *, uint32_t)                                                     \
    F(int, submit_settings, nghttp2_session *, uint8_t, const nghttp2_settings_entry *, size_t)                        \
    F(int, submit_response, nghttp2_session *, int32_t, const nghttp2_nv *, size_t, const nghttp2_data_provider *)     \
    F(int32_t, submit_request, nghttp2_session *, const nghttp2_priority_spec *, const nghttp2_nv *, size_t,           \
      const nghttp2_data_provider *, void *)                                                                           \
    F(int, submit_trailer, nghttp2_session *, int32_t, const nghttp2_nv *, size_t)                                     \
    F(int, submit_rst_stream, nghttp2_session *, uint8_t, int32_t, uint32_t)                                           \
    F(const char *, strerror, int)

/* A version number says nothing of these, because distributions backport them. */
#define NGHTTP2_OPTIONAL(F)                                                                                            \
    F(void, option_set_stream_reset_rate_limit, nghttp2_option *, uint64_t, uint64_t)                                  \
    F(void, option_set_max_outbound_queue_size, nghttp2_option *, size_t)                                              \
    F(int, session_change_extpri_stream_priority, nghttp2_session *, int32_t, const nghttp2_extpri *, int)
